package history

import (
	"strings"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/encoding/protowire"
)

// The database has records in protobuf's encoding, which is read several times
// faster than JSON: who lists builds waits for little else. There is no schema but
// encode and decode. A field has the number that encode gives it, which is never
// given to another; what is zero is left out, and what is not known passed over,
// so programs read what later ones wrote.
//
// Earlier programs wrote JSON. Its first byte, '{', begins none of these records,
// since to protobuf it is a group. Such records are read, and written anew at the
// next start.

// message is one that is being written.
type message []byte

func (m *message) text(n protowire.Number, s string) {
	if s != "" {
		*m = protowire.AppendTag(*m, n, protowire.BytesType)
		*m = protowire.AppendString(*m, strings.ToValidUTF8(s, "\uFFFD")) // as messages want texts
	}
}

func (m *message) number(n protowire.Number, v int64) {
	if v != 0 {
		*m = protowire.AppendTag(*m, n, protowire.VarintType)
		*m = protowire.AppendVarint(*m, uint64(v))
	}
}

// message adds one that f writes, be it empty.
func (m *message) message(n protowire.Number, f func(*message)) {
	var inner message
	f(&inner)
	*m = protowire.AppendTag(*m, n, protowire.BytesType)
	*m = protowire.AppendBytes(*m, inner)
}

func (m *message) texts(n protowire.Number, all map[string]string) {
	for k, v := range all {
		m.message(n, func(m *message) {
			m.text(1, k)
			m.text(2, v)
		})
	}
}

// numbers adds a message of numbers, whose fields count from one.
func (m *message) numbers(n protowire.Number, all ...int64) {
	m.message(n, func(m *message) {
		for i, v := range all {
			m.number(protowire.Number(i+1), v)
		}
	})
}

func (m *message) time(n protowire.Number, t time.Time) {
	if !t.IsZero() {
		m.numbers(n, t.Unix(), int64(t.Nanosecond()))
	}
}

func (m *message) descriptor(n protowire.Number, d *ocispecs.Descriptor) {
	if d != nil {
		m.message(n, func(m *message) {
			m.text(1, d.MediaType)
			m.text(2, string(d.Digest))
			m.number(3, d.Size)
			m.texts(4, d.Annotations)
		})
	}
}

func (m *message) descriptors(n protowire.Number, all []ocispecs.Descriptor) {
	for i := range all {
		m.descriptor(n, &all[i])
	}
}

func (m *message) result(n protowire.Number, r *Result) {
	m.message(n, func(m *message) {
		m.descriptors(1, r.Attestations)
		for exporter, d := range r.Images {
			m.message(2, func(m *message) {
				m.number(1, int64(exporter))
				m.descriptor(2, &d)
			})
		}
	})
}

func (r *Record) encode() []byte {
	m := make(message, 0, 1<<10)
	m.text(1, r.Ref)
	m.text(2, r.Frontend)
	m.texts(3, r.FrontendAttrs)
	for _, e := range r.Exporters {
		m.message(4, func(m *message) {
			m.text(1, e.Type)
			m.texts(2, e.Attrs)
		})
	}
	m.time(5, r.CreatedAt)
	m.time(6, r.CompletedAt)
	if f := r.Failure; f != nil {
		m.message(7, func(m *message) {
			m.number(1, int64(f.Code))
			m.text(2, f.Message)
		})
	}
	m.descriptor(8, r.Error)
	m.descriptor(9, r.Logs)
	m.descriptor(10, r.Trace)
	m.descriptor(11, r.CacheReasons)
	m.descriptors(12, r.Documents)
	m.texts(13, r.ExporterResponse)
	if r.Result != nil {
		m.result(14, r.Result)
	}
	for platform, res := range r.Results {
		m.message(15, func(m *message) {
			m.text(1, platform)
			m.result(2, &res)
		})
	}
	m.number(16, int64(r.Generation))
	if r.Pinned {
		m.number(17, 1)
	}
	m.numbers(18, int64(r.Steps.Cached), int64(r.Steps.Completed), int64(r.Steps.Total), int64(r.Steps.Warnings))
	m.numbers(19, int64(r.Cache.Steps), int64(r.Cache.Hits), r.Cache.SavedBytes, int64(r.Cache.SavedTime))
	m.text(20, r.Live)
	return m
}
