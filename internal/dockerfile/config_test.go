package dockerfile

import "testing"

func TestIsSignal(t *testing.T) {
	for word, want := range map[string]bool{
		"SIGTERM": true, "term": true, "sigKill": true, "1": true, "9": true, "64": true, "SIGRTMIN": true, "RTMIN+0": true, "SIGRTMIN+15": true,
		"rtmax-14": true, "SIGRTMAX": true, "0": false, "65": false, "09": false, "+9": false, "-1": false, "": false, "SIG": false,
		"SIGSIGTERM": false, "SIG9": false, "RTMIN+16": false, "RTMIN+01": false, "RTMIN-1": false, "RTMAX-15": false, "RTMAX+1": false, "SIGTERM ": false,
	} {
		if got := isSignal(word); got != want {
			t.Errorf("%q: got %v, want %v", word, got, want)
		}
	}
}
