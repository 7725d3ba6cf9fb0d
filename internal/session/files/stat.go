package files

import (
	"encoding/binary"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/fsutil"
)

// Stat is an entry of a listing. The name lets those handle entries who do not
// see the wire's packages.
type Stat = fsutil.Stat

// AppendRecord appends an entry as the file of a metadata-only transfer has it (as
// in tonistiigi/fsutil): its size in 4 bytes, little end first, and its message.
func AppendRecord(b []byte, st *Stat) ([]byte, error) {
	at := len(b)
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(append(b, 0, 0, 0, 0), st)
	if err != nil {
		return nil, fmt.Errorf("encode entry %q: %w", st.GetPath(), err)
	}
	binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b, nil
}
