package history

import (
	"maps"
	"slices"
	"strings"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/encoding/protowire"
)

// The database has a record as the message that clients are sent, so that it is
// sent as it was read: who lists builds waits for little else. After the message
// comes what clients are not told:
//
//	formMessage | length of the message | message | own
//
// The message is BuildKit's BuildHistoryRecord (api/services/control), with
// BuildKit's numbers of fields. Own is one in the same encoding whose numbers are
// those that own gives them; they are never given to other fields. What is not
// known is passed over, so programs read what later ones wrote.
//
// Earlier programs wrote records as JSON, which begins with another byte. These are
// read, and written anew, at the next start.
const formMessage = 1

// cacheReasons is the annotation of a record's log that names the blob, of type
// [MediaTypeCacheReasons], that says why steps were not cached: BuildKit's message
// has no place of its own for it.
const cacheReasons = "kiln.cache-reasons"

// encode is the record as the database has it.
func (r *Record) encode() []byte {
	wire := r.message()
	data := make([]byte, 0, len(wire)+1<<8)
	data = append(data, formMessage)
	data = protowire.AppendBytes(data, wire)
	return append(data, r.own()...)
}

// message is the record as clients are sent it.
func (r *Record) message() []byte {
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
	if f := r.Failure; f != nil {
		m.message(5, func(m *message) {
			m.number(1, int64(f.Code))
			m.text(2, f.Message)
		})
	}
	m.time(6, r.CreatedAt)
	m.time(7, r.CompletedAt)
	logs := r.Logs
	if logs != nil && r.CacheReasons != nil {
		with := *logs
		with.Annotations = map[string]string{cacheReasons: string(r.CacheReasons.Digest)}
		logs = &with
	}
	m.descriptor(8, logs)
	m.texts(9, r.ExporterResponse)
	if r.Result != nil {
		m.result(10, r.Result)
	}
	for platform, res := range r.Results {
		m.message(11, func(m *message) {
			m.text(1, platform)
			m.result(2, &res)
		})
	}
	m.number(12, int64(r.Generation))
	m.descriptor(13, r.Trace)
	if r.Pinned {
		m.number(14, 1)
	}
	m.number(15, int64(r.Steps.Cached))
	m.number(16, int64(r.Steps.Total))
	m.number(17, int64(r.Steps.Completed))
	m.descriptor(18, r.Error)
	m.number(19, int64(r.Steps.Warnings))
	return m
}

// own is what clients are not told.
func (r *Record) own() []byte {
	var m message
	m.descriptors(1, r.Documents)
	m.descriptor(2, r.CacheReasons)
	if r.Cache != (CacheStats{}) {
		m.numbers(3, int64(r.Cache.Steps), int64(r.Cache.Hits), r.Cache.SavedBytes, int64(r.Cache.SavedTime))
	}
	m.text(4, r.Live)
	return m
}

// message is one that is being written. Fields that are zero are left out.
type message []byte

func (m *message) text(n protowire.Number, s string) {
	if s != "" {
		*m = protowire.AppendTag(*m, n, protowire.BytesType)
		*m = protowire.AppendString(*m, strings.ToValidUTF8(s, "\uFFFD")) // clients refuse all else
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
			m.texts(5, d.Annotations)
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
		exporters := slices.Sorted(maps.Keys(r.Images))
		if len(exporters) > 0 { // for old clients, which know one exporter
			first := r.Images[exporters[0]]
			m.descriptor(1, &first)
		}
		m.descriptors(2, r.Attestations)
		for _, i := range exporters {
			m.message(3, func(m *message) {
				d := r.Images[i]
				m.number(1, int64(i))
				m.descriptor(2, &d)
			})
		}
	})
}
