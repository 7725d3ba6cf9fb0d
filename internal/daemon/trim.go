package daemon

import "time"

const (
	// trimEvery is how often it is asked whether memory is to be given back.
	trimEvery = 5 * time.Second
	// trimBuilds is after how many builds memory is given back although there is
	// no pause between them.
	trimBuilds = 16
	// trimSoon is how long after its start a daemon that nobody builds with is
	// taken to be idle.
	trimSoon = 500 * time.Millisecond
)

// trimStart gives memory back that the start of the program has left, unless a
// build came at once, which needs it.
func (s *Server) trimStart(stop <-chan struct{}) {
	if s.config.Trim == nil {
		return
	}
	soon := time.NewTimer(trimSoon)
	defer soon.Stop()
	select {
	case <-stop:
	case <-soon.C:
		if s.builds.untouched() {
			s.config.Trim()
		}
	}
}

// trimMemory gives memory back that builds have left, while nobody builds. What
// a daemon holds after many builds is then what it holds after few.
func (s *Server) trimMemory(stop <-chan struct{}) {
	if s.config.Trim == nil {
		return
	}
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	trimmed := 0
	for {
		select {
		case <-stop:
			return
		case <-s.builds.many:
			trimmed = s.builds.ended()
			s.config.Trim()
		case <-tick.C:
			if ended := s.builds.ended(); ended > trimmed && s.idleFor() >= trimEvery {
				trimmed = ended
				s.config.Trim()
			}
		}
	}
}
