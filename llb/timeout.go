package llb

import (
	"fmt"
	"maps"
	"time"

	"github.com/kiln-build/kiln/llb/pb"
)

// descTimeout is the description that has a step's timeout on the wire, whose
// messages have no field for it. A daemon that would pass over it lacks
// [CapExecMetaTimeout], and refuses the step.
const descTimeout = "kiln.timeout"

// encodeTimeout puts a timeout into a message.
func encodeTimeout(m *pb.OpMetadata, d time.Duration) {
	if d == 0 {
		return
	}
	all := map[string]string{}
	maps.Copy(all, m.Description)
	all[descTimeout] = d.String()
	m.Description = all
}

// decodeTimeout takes a timeout out of what a message has said of a vertex.
func (m *Metadata) decodeTimeout() error {
	text, ok := m.Description[descTimeout]
	if !ok {
		return nil
	}
	if err := m.parseTimeout(text); err != nil {
		return err
	}
	m.Description = maps.Clone(m.Description)
	delete(m.Description, descTimeout)
	return nil
}

func (m *Metadata) parseTimeout(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return fmt.Errorf("timeout %q is no time: expected one above 0, such as 90s or 5m", text)
	}
	m.Timeout = d
	return nil
}
