package git

import "testing"

func TestRecent(t *testing.T) {
	for version, want := range map[string]bool{
		"git version 2.31.0": true, "git version 2.39.5 (Apple Git-154)": true, "git version 2.50.0.rc1": true, "git version 3.0.0": true,
		"git version 2.30.9": false, "git version 1.99.0": false, "": false, "git": false, "git version x.y": false,
	} {
		if err := recent(version); (err == nil) != want {
			t.Errorf("%q: got %v", version, err)
		}
	}
}
