package llb

import (
	"strings"
	"testing"
	"time"
)

// TestTimeoutTravels checks that a timeout is on the wire, where a daemon that
// does not know it refuses the step, and that it is not part of the digest.
func TestTimeoutTravels(t *testing.T) {
	exec := func(timeout time.Duration) *Vertex {
		v := BuildExec(ExecOp{Args: []string{"true"}, Cwd: "/"}, []MountFrom{{Mount: Mount{Dest: "/"}}})
		v.Meta.Description = map[string]string{descName: "x"}
		v.Meta.Timeout = timeout
		return v
	}
	v := exec(90 * time.Second)
	if v.Digest() != exec(0).Digest() {
		t.Error("the timeout is part of the digest")
	}
	def, err := (&Graph{Root: Edge{Vertex: v}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	meta := def.Metadata[string(v.Digest())]
	if !meta.Caps[CapExecMetaTimeout] || meta.Description[descTimeout] != "1m30s" || len(v.Meta.Description) != 1 {
		t.Errorf("metadata %v of description %v", meta, v.Meta.Description)
	}
	g, err := Unmarshal(def)
	if err != nil {
		t.Fatal(err)
	}
	if m := g.Root.Vertex.Meta; m.Timeout != 90*time.Second || len(m.Description) != 1 {
		t.Errorf("read timeout %v and description %v", m.Timeout, m.Description)
	}
	for _, bad := range []string{"", "soon", "-1s", "0s"} {
		meta.Description[descTimeout] = bad
		if _, err := Unmarshal(def); err == nil || !strings.Contains(err.Error(), "timeout") {
			t.Errorf("timeout %q: error %v", bad, err)
		}
	}
}
