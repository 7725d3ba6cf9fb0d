package ui

import (
	"encoding/json"
	"io"
	"sync"
	"time"

	"github.com/kiln-build/kiln/internal/progress"
)

// rawJSON writes one line of JSON for each event, in the form of BuildKit's
// util/progress/progressui.
type rawJSON struct {
	mu  sync.Mutex
	out io.Writer
	err error
}

type jsonEvent struct {
	Vertexes []jsonVertex  `json:"vertexes,omitempty"`
	Statuses []jsonStatus  `json:"statuses,omitempty"`
	Logs     []jsonLog     `json:"logs,omitempty"`
	Warnings []jsonWarning `json:"warnings,omitempty"`
}

type jsonVertex struct {
	Digest    string     `json:"digest,omitempty"`
	Inputs    []string   `json:"inputs,omitempty"`
	Name      string     `json:"name,omitempty"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"completed,omitempty"`
	Cached    bool       `json:"cached,omitempty"`
	Error     string     `json:"error,omitempty"`
	Group     *jsonGroup `json:"progressGroup,omitempty"`
}

type jsonGroup struct {
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
	Weak bool   `json:"weak,omitempty"`
}

type jsonStatus struct {
	ID        string     `json:"id"`
	Vertex    string     `json:"vertex,omitempty"`
	Name      string     `json:"name,omitempty"`
	Total     int64      `json:"total,omitempty"`
	Current   int64      `json:"current"`
	Timestamp time.Time  `json:"timestamp"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"completed,omitempty"`
}

type jsonLog struct {
	Vertex    string    `json:"vertex,omitempty"`
	Stream    int       `json:"stream,omitempty"`
	Data      []byte    `json:"data"`
	Timestamp time.Time `json:"timestamp"`
}

type jsonWarning struct {
	Vertex string      `json:"vertex,omitempty"`
	Level  int         `json:"level,omitempty"`
	Short  []byte      `json:"short,omitempty"`
	Detail [][]byte    `json:"detail,omitempty"`
	URL    string      `json:"url,omitempty"`
	Source *jsonSource `json:"sourceInfo,omitempty"`
	Range  []jsonRange `json:"range,omitempty"`
}

type jsonSource struct {
	Filename string `json:"filename,omitempty"`
	Data     []byte `json:"data,omitempty"`
	Language string `json:"language,omitempty"`
}

type jsonRange struct {
	Start jsonPosition `json:"start"`
	End   jsonPosition `json:"end"`
}

type jsonPosition struct {
	Line      int `json:"line"`
	Character int `json:"character"`
}

// Emit writes an event.
func (j *rawJSON) Emit(e progress.Event) {
	b, err := json.Marshal(eventOf(e))
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		_, err = j.out.Write(append(b, '\n'))
	}
	if j.err == nil {
		j.err = err
	}
}

// Finish has nothing to write: a failure is the command's to tell.
func (j *rawJSON) Finish(failure *Failure) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	return failure.show(j.out, nil, palette{})
}

func eventOf(e progress.Event) jsonEvent {
	var out jsonEvent
	switch {
	case e.Vertex != nil:
		v := jsonVertex{
			Digest: string(e.Vertex.Digest), Name: e.Vertex.Name, Started: e.Vertex.Started,
			Completed: e.Vertex.Completed, Cached: e.Vertex.Cached, Error: e.Vertex.Error,
		}
		for _, in := range e.Vertex.Inputs {
			v.Inputs = append(v.Inputs, string(in))
		}
		if g := e.Vertex.Group; g != nil {
			v.Group = &jsonGroup{g.ID, g.Name, g.Weak}
		}
		out.Vertexes = []jsonVertex{v}
	case e.Status != nil:
		s := e.Status
		out.Statuses = []jsonStatus{{
			ID: s.ID, Vertex: string(s.Vertex), Name: s.Name, Total: s.Total, Current: s.Current,
			Timestamp: s.Timestamp, Started: s.Started, Completed: s.Completed,
		}}
	case e.Log != nil:
		out.Logs = []jsonLog{{string(e.Log.Vertex), e.Log.Stream, e.Log.Data, e.Log.Timestamp}}
	case e.Warning != nil:
		out.Warnings = []jsonWarning{warningOf(e.Warning)}
	}
	return out
}

func warningOf(w *progress.Warning) jsonWarning {
	out := jsonWarning{Vertex: string(w.Vertex), Level: w.Level, Short: w.Short, Detail: w.Detail, URL: w.URL}
	if w.Source != nil {
		out.Source = &jsonSource{w.Source.Filename, w.Source.Data, w.Source.Language}
		for _, r := range w.Source.Ranges {
			out.Range = append(out.Range, jsonRange{
				jsonPosition{r.StartLine, r.StartChar}, jsonPosition{r.EndLine, r.EndChar},
			})
		}
	}
	return out
}
