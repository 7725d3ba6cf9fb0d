// Package progress carries what a build has to tell while it runs: vertices,
// their sub-tasks, logs, warnings and, for traces, moments.
//
// Events flow one way, from the rim (pulls, containers, exports) to sinks (a
// client's display, the history). Losing one never changes a build. The daemon and
// the client share these types; the wire form is the StatusResponse of control.proto.
package progress

import (
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Event is one piece of news: exactly one field is set.
type Event struct {
	Vertex  *Vertex
	Status  *Status
	Log     *Log
	Warning *Warning
	Moment  *Moment
}

// Vertex tells of a step's state. A later one with the same digest replaces it.
type Vertex struct {
	Digest    digest.Digest
	Inputs    []digest.Digest
	Name      string
	Started   *time.Time
	Completed *time.Time
	Cached    bool
	Error     string
	Group     *Group
}

// Group is a set of vertices that a display may fold into one.
type Group struct {
	ID, Name string
	Weak     bool
}

// Status tells of a part of a step, such as one layer of a pull. A later one
// with the same vertex and ID replaces it.
type Status struct {
	ID        string
	Vertex    digest.Digest
	Name      string
	Current   int64 // bytes, or items
	Total     int64 // 0 if unknown
	Timestamp time.Time
	Started   *time.Time
	Completed *time.Time
}

// Log is output of a step, not necessarily whole lines.
type Log struct {
	Vertex    digest.Digest
	Stream    int // 1 stdout, 2 stderr
	Data      []byte
	Timestamp time.Time
}

// Warning is something a user should know about that stops nothing.
type Warning struct {
	Vertex digest.Digest
	Level  int
	Short  []byte
	Detail [][]byte
	URL    string
	Source *Source
}

// Moment is something that happened in a step, for traces: displays do not show it.
type Moment struct {
	Vertex   digest.Digest
	Name     string
	Time     time.Time
	ExitCode *int // of the process that ended, if it is that
}

// Source is a stretch of a file that a person wrote.
type Source struct {
	Filename string
	Language string
	Data     []byte
	Ranges   []Range
}

// Range is a stretch of text. Lines count from 1, characters (bytes) from 0.
type Range struct{ StartLine, StartChar, EndLine, EndChar int }

// Sink takes events. Emit must not block for long, and is called concurrently.
type Sink interface{ Emit(Event) }

// SinkFunc is a function that is a Sink.
type SinkFunc func(Event)

// Emit calls f.
func (f SinkFunc) Emit(e Event) { f(e) }

// Discard returns a sink that forgets.
func Discard() Sink { return SinkFunc(func(Event) {}) }
