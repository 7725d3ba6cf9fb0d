package build

import (
	"maps"
	"testing"
)

// A frontend may say any bytes; clients are answered strings.
func TestAnswered(t *testing.T) {
	got := answered(map[string][]byte{"frontend.a": []byte("said"), "frontend.b": {'x', 0xff}, "other": []byte("kept")})
	if want := map[string]string{"frontend.a": "said", "frontend.b": "x\uFFFD"}; !maps.Equal(got, want) {
		t.Errorf("answered %q, want %q", got, want)
	}
}
