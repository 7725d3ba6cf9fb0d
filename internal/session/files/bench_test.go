package files_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/session/files"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

// devNull is a destination that wants all and keeps nothing.
type devNull struct{}

func (devNull) Stat(*fsutil.Stat) (bool, error)            { return true, nil }
func (devNull) Create(*fsutil.Stat) (files.Content, error) { return devNull{}, nil }
func (devNull) Write(p []byte) (int, error)                { return len(p), nil }
func (devNull) Commit() error                              { return nil }
func (devNull) Abort()                                     {}

func benchmarkReceive(b *testing.B, dir string, dst func() files.Destination) {
	caller := sessiontest.Connect(b, files.NewProvider(map[string]files.Source{"context": files.FromDir(dir)}))
	for b.Loop() {
		if err := files.Receive(context.Background(), caller, files.ReceiveOptions{Name: "context"}, dst()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLargeFile(b *testing.B) {
	dir := b.TempDir()
	const size = 500 << 20
	if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, size), 0o644); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	benchmarkReceive(b, dir, func() files.Destination { return devNull{} })
}

func BenchmarkManyFiles(b *testing.B) {
	dir := b.TempDir()
	for i := range 10000 {
		write(b, dir, [2]string{fmt.Sprintf("d%d/f%d", i%100, i), string(make([]byte, 4096))})
	}
	b.Run("all", func(b *testing.B) {
		benchmarkReceive(b, dir, func() files.Destination { return devNull{} })
	})
	b.Run("none", func(b *testing.B) {
		benchmarkReceive(b, dir, func() files.Destination {
			return &collect{skip: func(*fsutil.Stat) bool { return true }}
		})
	})
}

func BenchmarkExport(b *testing.B) {
	dir := b.TempDir()
	for i := range 20000 {
		write(b, dir, [2]string{fmt.Sprintf("small/d%03d/f%d", i/100, i), string(make([]byte, 600))})
	}
	n := 0
	for b.Loop() {
		if err := sendTo(b, openDir(b, dir), files.DirTarget{Name: filepath.Join(b.TempDir(), fmt.Sprint(n))}); err != nil {
			b.Fatal(err)
		}
		n++
	}
}
