package session

import (
	"bytes"
	"errors"
	"testing"
)

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestAheadHandsAllOnInOrder(t *testing.T) {
	var got bytes.Buffer
	a := NewAhead(&got)
	var want []byte
	for i := range 5000 {
		piece := bytes.Repeat([]byte{byte(i)}, i%3000)
		want = append(want, piece...)
		if n, err := a.Write(piece); n != len(piece) || err != nil {
			t.Fatalf("wrote %d bytes of %d: %v", n, len(piece), err)
		}
	}
	for range 2 {
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes arrived, want the %d written", got.Len(), len(want))
	}
	if _, err := a.Write([]byte("late")); err == nil {
		t.Error("a closed stream takes more")
	}
}

func TestAheadTellsOfFailure(t *testing.T) {
	full := errors.New("full")
	for name, size := range map[string]int{"at the end": 1, "on the way": 10 << 20} {
		a := NewAhead(writerFunc(func([]byte) (int, error) { return 0, full }))
		_, err := a.Write(make([]byte, size))
		if closing := a.Close(); !errors.Is(closing, full) {
			t.Errorf("%s: closing gives %v", name, closing)
		}
		if size > aheadBuffer*aheadBuffers*2 && !errors.Is(err, full) {
			t.Errorf("%s: writing gives %v", name, err)
		}
	}
}

func TestAheadAbandoned(t *testing.T) {
	began, goOn := make(chan struct{}, 9), make(chan struct{})
	a := NewAhead(writerFunc(func(p []byte) (int, error) {
		began <- struct{}{}
		<-goOn
		return len(p), nil
	}))
	if _, err := a.Write(make([]byte, aheadBuffer+1)); err != nil {
		t.Fatal(err)
	}
	<-began
	a.Abandon() // while a write is under way
	close(goOn)
	<-a.done
	if len(began) > 0 {
		t.Error("what was not written when it was abandoned was written still")
	}
}
