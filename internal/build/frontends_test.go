package build

import (
	"context"
	"maps"
	"testing"
)

func TestWithoutImage(t *testing.T) {
	opts := map[string]string{"source": "dockerfile.v0", "cmdline": "x"}
	name, got := withoutImage("gateway.v0", opts)
	if name != "dockerfile.v0" || !maps.Equal(got, map[string]string{"cmdline": "x"}) || len(opts) != 2 {
		t.Errorf("got %s %v, and left %v", name, got, opts)
	}
	for _, opts := range []map[string]string{
		{"source": "other"}, {}, {"source": "dockerfile.v0", "context:dockerfile.v0::linux/amd64": "docker-image://x"},
	} {
		if name, got := withoutImage("gateway.v0", opts); name != "gateway.v0" || !maps.Equal(got, opts) {
			t.Errorf("%v became %s %v", opts, name, got)
		}
	}
}

func TestFrontendDepth(t *testing.T) {
	ctx, n := t.Context(), 0
	for {
		next, err := deeper(ctx)
		if err != nil {
			break
		}
		if ctx, n = next, n+1; n > mostFrontends {
			t.Fatal("there is no end")
		}
	}
	if n != mostFrontends {
		t.Errorf("%d frontends may call each other, want %d", n, mostFrontends)
	}
	if _, err := deeper(context.Background()); err != nil {
		t.Errorf("another request is refused: %v", err)
	}
}
