package history

import (
	"encoding/json"
	"fmt"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/encoding/protowire"
)

// earlierForm tells whether a record is as databases once had it.
func earlierForm(data []byte) bool { return len(data) > 0 && data[0] == '{' }

// splitRecord returns the message of a record that clients are sent, and the rest.
func splitRecord(data []byte) (wire, own []byte, err error) {
	if len(data) == 0 || data[0] != formMessage {
		return nil, nil, fmt.Errorf("a record of %d bytes begins with none of the known forms", len(data))
	}
	wire, size := protowire.ConsumeBytes(data[1:])
	if size < 0 {
		return nil, nil, protowire.ParseError(size)
	}
	return wire, data[1+size:], nil
}

// decodeRecord reads a record of either form.
func decodeRecord(data []byte) (*Record, error) {
	r := &Record{}
	var err error
	if earlierForm(data) {
		err = json.Unmarshal(data, r)
	} else {
		err = r.decode(data)
	}
	if err == nil && r.Ref == "" {
		err = fmt.Errorf("a record of %d bytes has no ref", len(data))
	}
	return r, err
}

func (r *Record) decode(data []byte) error {
	wire, own, err := splitRecord(data)
	if err == nil {
		err = r.decodeMessage(wire)
	}
	if err == nil {
		err = r.decodeOwn(own)
	}
	if r.Logs != nil && r.CacheReasons != nil {
		r.Logs.Annotations = nil
	}
	return err
}

// field is one of a message that is being read: a number, or else data.
type field struct {
	n      protowire.Number
	number int64
	data   []byte
}

// eachField calls f with the fields of a message, but for those of kinds that
// are not written here.
func eachField(data []byte, f func(field) error) error {
	for len(data) > 0 {
		n, kind, size := protowire.ConsumeTag(data)
		if size < 0 {
			return protowire.ParseError(size)
		}
		data = data[size:]
		at, known := field{n: n}, true
		switch kind {
		case protowire.VarintType:
			var v uint64
			v, size = protowire.ConsumeVarint(data)
			at.number = int64(v)
		case protowire.BytesType:
			at.data, size = protowire.ConsumeBytes(data)
		default:
			size, known = protowire.ConsumeFieldValue(n, kind, data), false
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		data = data[size:]
		if !known {
			continue
		}
		if err := f(at); err != nil {
			return err
		}
	}
	return nil
}

func (r *Record) decodeMessage(data []byte) error {
	return eachField(data, func(f field) (err error) {
		switch f.n {
		case 1:
			r.Ref = string(f.data)
		case 2:
			r.Frontend = string(f.data)
		case 3:
			err = addText(&r.FrontendAttrs, f.data)
		case 4:
			var e Exporter
			e, err = decodeExporter(f.data)
			r.Exporters = append(r.Exporters, e)
		case 5:
			r.Failure, err = decodeFailure(f.data)
		case 6:
			r.CreatedAt, err = decodeTime(f.data)
		case 7:
			r.CompletedAt, err = decodeTime(f.data)
		case 8:
			r.Logs, err = decodeDescriptor(f.data)
		case 9:
			err = addText(&r.ExporterResponse, f.data)
		case 10:
			r.Result = &Result{}
			err = r.Result.decode(f.data)
		case 11:
			err = r.decodeResult(f.data)
		case 13:
			r.Trace, err = decodeDescriptor(f.data)
		case 18:
			r.Error, err = decodeDescriptor(f.data)
		default:
			r.setNumber(f)
		}
		return err
	})
}

// setNumber reads a field of the message that is a number.
func (r *Record) setNumber(f field) {
	switch f.n {
	case 12:
		r.Generation = int(f.number)
	case 14:
		r.Pinned = f.number != 0
	case 15:
		r.Steps.Cached = int(f.number)
	case 16:
		r.Steps.Total = int(f.number)
	case 17:
		r.Steps.Completed = int(f.number)
	case 19:
		r.Steps.Warnings = int(f.number)
	}
}

func (r *Record) decodeOwn(data []byte) error {
	return eachField(data, func(f field) (err error) {
		switch f.n {
		case 1:
			err = addDescriptor(&r.Documents, f.data)
		case 2:
			r.CacheReasons, err = decodeDescriptor(f.data)
		case 3:
			var v numbers
			err = v.decode(f.data)
			r.Cache = CacheStats{Steps: int(v[0]), Hits: int(v[1]), SavedBytes: v[2], SavedTime: time.Duration(v[3])}
		case 4:
			r.Live = string(f.data)
		}
		return err
	})
}

// decodeResult reads the result of a platform.
func (r *Record) decodeResult(data []byte) error {
	var platform string
	var res Result
	err := eachField(data, func(f field) error {
		switch f.n {
		case 1:
			platform = string(f.data)
		case 2:
			return res.decode(f.data)
		}
		return nil
	})
	if r.Results == nil {
		r.Results = map[string]Result{}
	}
	r.Results[platform] = res
	return err
}

func (r *Result) decode(data []byte) error {
	return eachField(data, func(f field) error {
		switch f.n {
		case 2:
			return addDescriptor(&r.Attestations, f.data)
		case 3:
			return r.decodeImage(f.data)
		}
		return nil
	})
}

func (r *Result) decodeImage(data []byte) error {
	var exporter int
	d := &ocispecs.Descriptor{}
	err := eachField(data, func(f field) (err error) {
		switch f.n {
		case 1:
			exporter = int(f.number)
		case 2:
			d, err = decodeDescriptor(f.data)
		}
		return err
	})
	if r.Images == nil {
		r.Images = map[int]ocispecs.Descriptor{}
	}
	r.Images[exporter] = *d
	return err
}

func decodeDescriptor(data []byte) (*ocispecs.Descriptor, error) {
	d := &ocispecs.Descriptor{}
	return d, eachField(data, func(f field) error {
		switch f.n {
		case 1:
			d.MediaType = string(f.data)
		case 2:
			d.Digest = digest.Digest(f.data)
		case 3:
			d.Size = f.number
		case 5:
			return addText(&d.Annotations, f.data)
		}
		return nil
	})
}

func addDescriptor(all *[]ocispecs.Descriptor, data []byte) error {
	d, err := decodeDescriptor(data)
	*all = append(*all, *d)
	return err
}

func decodeExporter(data []byte) (e Exporter, err error) {
	err = eachField(data, func(f field) error {
		switch f.n {
		case 1:
			e.Type = string(f.data)
		case 2:
			return addText(&e.Attrs, f.data)
		}
		return nil
	})
	return e, err
}

func decodeFailure(data []byte) (*Failure, error) {
	w := &Failure{}
	return w, eachField(data, func(f field) error {
		switch f.n {
		case 1:
			w.Code = int(f.number)
		case 2:
			w.Message = string(f.data)
		}
		return nil
	})
}

func decodeTime(data []byte) (time.Time, error) {
	var v numbers
	err := v.decode(data)
	return time.Unix(v[0], v[1]).UTC(), err
}

// numbers are those of a message of numbers.
type numbers [4]int64

func (v *numbers) decode(data []byte) error {
	return eachField(data, func(f field) error {
		if i := int(f.n) - 1; i < len(v) {
			v[i] = f.number
		}
		return nil
	})
}

// addText adds an entry of a map.
func addText(all *map[string]string, data []byte) error {
	var k, v string
	err := eachField(data, func(f field) error {
		switch f.n {
		case 1:
			k = string(f.data)
		case 2:
			v = string(f.data)
		}
		return nil
	})
	if *all == nil {
		*all = map[string]string{}
	}
	(*all)[k] = v
	return err
}
