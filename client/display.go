package client

import "github.com/kiln-build/kiln/internal/ui"

// How progress is shown, to a person or to a program.
type (
	// Display is a [Sink] that shows one build. Finish shows its end.
	Display = ui.Display
	// DisplayMode is a way to show progress.
	DisplayMode = ui.Mode
	// DisplayOptions say how and where to show it.
	DisplayOptions = ui.Options
	// Failure is why a build failed, as a Display shows it.
	Failure = ui.Failure
)

// The ways to show progress.
const (
	DisplayAuto    = ui.Auto    // tty on a terminal, else plain
	DisplayTTY     = ui.TTY     // a table that is drawn anew
	DisplayPlain   = ui.Plain   // line by line
	DisplayRawJSON = ui.RawJSON // BuildKit's JSON lines
	DisplayQuiet   = ui.Quiet   // nothing
)

// NewDisplay returns a display of one build, for the sink of [Client.Solve] or
// [Client.Build].
func NewDisplay(o DisplayOptions) (Display, error) { return ui.New(o) }

// ParseDisplayMode reads a word such as "plain".
func ParseDisplayMode(s string) (DisplayMode, error) { return ui.ParseMode(s) }
