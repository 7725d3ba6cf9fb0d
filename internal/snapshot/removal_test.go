package snapshot

import (
	"os"
	"path/filepath"
	"testing"
)

// A removal that takes long holds up no other, and nobody takes part in it.
func TestSlowRemoval(t *testing.T) {
	s, err := Open(t.TempDir(), Overlay)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	dirs := map[string]string{}
	for _, key := range []string{"slow", "quick", "failing"} {
		if _, err := s.Prepare(t.Context(), key, ""); err != nil {
			t.Fatal(err)
		}
		dir, err := s.Dir(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		dirs[key] = filepath.Dir(dir)
	}
	begun, goOn := make(chan struct{}), make(chan struct{})
	s.remove = func(dir string) error {
		switch dir {
		case dirs["slow"]:
			close(begun) // a second time is a panic
			<-goOn
		case dirs["failing"]:
			s.remove = os.RemoveAll
			return os.ErrPermission
		}
		return os.RemoveAll(dir)
	}
	done := make(chan error, 1)
	go func() { done <- s.RemoveAll(t.Context(), []string{"slow"}) }()
	<-begun
	for _, key := range []string{"quick", "failing"} {
		if err := s.RemoveAll(t.Context(), []string{key}); err != nil {
			t.Error(err)
		}
	}
	if err := s.Cleanup(t.Context()); err != nil { // which removes what failed
		t.Error(err)
	}
	left, err := os.ReadDir(s.directories())
	if err != nil || len(left) != 1 || left[0].Name() != filepath.Base(dirs["slow"]) {
		t.Errorf("left are %v, %v, want that which is being removed", left, err)
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(s.directories()); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}
