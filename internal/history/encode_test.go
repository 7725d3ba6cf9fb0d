package history

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/encoding/protowire"
)

func TestRecordsAreReadAsWritten(t *testing.T) {
	full := fullRecord("a")
	noZeros(t, "record", reflect.ValueOf(*full))
	for name, r := range map[string]*Record{
		"full": full, "bare": {Ref: "a"},
		"odd": {
			Ref: "a", CreatedAt: time.Date(1, 2, 3, 4, 5, 6, 7, time.UTC), CompletedAt: time.Unix(0, 0).UTC(), Generation: -1,
			Failure: &Failure{}, Logs: &ocispecs.Descriptor{}, Result: &Result{}, Results: map[string]Result{"": {}},
			Exporters: []Exporter{{}, {}}, FrontendAttrs: map[string]string{"": ""},
		},
	} {
		got, err := decodeRecord(r.encode())
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s record is read as %+v (%v), was %+v", name, got, err, r)
		}
	}
	got, err := decodeRecord((&Record{Ref: "a", Frontend: "\xffx"}).encode())
	if err != nil || got.Frontend != "\uFFFDx" {
		t.Errorf("a text that no message can have is read as %q (%v)", got.Frontend, err)
	}
}

// noZeros fails for what a record can say and the one of the test does not.
func noZeros(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	if v.IsZero() {
		t.Errorf("%s is zero: give it a value, and encode and decode it", name)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		noZeros(t, name, v.Elem())
	case reflect.Slice:
		noZeros(t, name, v.Index(0))
	case reflect.Struct:
		switch v.Interface().(type) {
		case time.Time, ocispecs.Descriptor:
			return
		}
		for i := range v.NumField() {
			noZeros(t, name+"."+v.Type().Field(i).Name, v.Field(i))
		}
	}
}

// A database that is damaged, or has been used by a later program, breaks nothing.
func TestRecordsOfOthers(t *testing.T) {
	full := fullRecord("a")
	data := full.encode()
	later := protowire.AppendTag(slices.Clone(data), 1000, protowire.Fixed64Type)
	later = protowire.AppendFixed64(later, 1)
	later = protowire.AppendTag(later, 1001, protowire.BytesType)
	later = protowire.AppendString(later, "new")
	if got, err := decodeRecord(later); err != nil || !reflect.DeepEqual(got, full) {
		t.Errorf("a record with fields of a later program is read as %+v (%v)", got, err)
	}
	refused := 0
	for size := range data {
		if _, err := decodeRecord(data[:size]); err != nil {
			refused++
		}
		changed := slices.Clone(data)
		changed[size] ^= 0xff
		_, _ = decodeRecord(changed) // whatever it is, it does not panic
	}
	if refused == 0 || refused == len(data) {
		t.Errorf("of %d beginnings of a record %d are refused", len(data), refused)
	}
	for _, text := range []string{"", "{", "{}", "null"} {
		if _, err := decodeRecord([]byte(text)); err == nil {
			t.Errorf("%q is read as a record", text)
		}
	}
}

// A database of an earlier program has records as JSON. The next start writes them
// anew, even of a build that was under way, and loses none.
func TestEarlierForm(t *testing.T) {
	w := newWorld(t, DefaultRetention())
	w.build(Record{Ref: "ended"}, Outcome{Failure: &Failure{2, "it broke"}, Error: []byte("details")}, "line")
	running, err := w.Begin(Record{Ref: "running"}, false)
	if err != nil {
		t.Fatal(err)
	}
	running.Log().Append([]byte("one"))
	ended, err := w.Get("ended")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Record{ended, &running.record} {
		data, err := json.Marshal(r)
		if err := errors.Join(err, w.db.PutRecord(r.Ref, data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.db.PutRecord("odd", []byte("{")); err != nil {
		t.Fatal(err)
	}
	w.close()
	w.open(DefaultRetention())
	if got, err := w.Get("ended"); err != nil || !reflect.DeepEqual(got, ended) {
		t.Errorf("the record is now %+v (%v), was %+v", got, err, ended)
	}
	if r, err := w.Get("running"); err != nil || r.Failure == nil || r.Failure.Code != codeAborted {
		t.Errorf("the record of the build that was under way is %+v (%v)", r, err)
	}
	if lines := w.replay("running"); !slices.Equal(lines, []string{"one"}) {
		t.Errorf("its log tells %q", lines)
	}
	for _, ref := range []string{"ended", "running"} {
		if data, ok := w.db.Record(ref); !ok || earlierForm(data) {
			t.Errorf("the record of %s is still as it was: %.20q", ref, data)
		}
	}
	checkFiles(t, w)
}
