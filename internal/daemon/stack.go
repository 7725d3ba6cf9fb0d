package daemon

import (
	"os"
	"runtime"

	"github.com/kiln-build/kiln/internal/api/stack"
)

// wireStack is where in this process an error came to light, which clients show to
// those who debug (BuildKit's solver/errdefs).
func wireStack(callers []uintptr) *stack.Stack {
	s := &stack.Stack{Cmdline: os.Args, Pid: int32(os.Getpid())}
	for frames := runtime.CallersFrames(callers); ; {
		f, more := frames.Next()
		if f.Function != "" {
			s.Frames = append(s.Frames, &stack.Frame{Name: f.Function, File: f.File, Line: int32(f.Line)})
		}
		if !more {
			return s
		}
	}
}
