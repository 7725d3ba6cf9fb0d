package gateway

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/safepath"
)

// TestReadDirIsBounded lists a directory of more than fits an answer, whole and in part.
func TestReadDirIsBounded(t *testing.T) {
	const most = 4 << 10
	dir := t.TempDir()
	for i := range 300 {
		if err := os.Symlink("target", filepath.Join(dir, fmt.Sprint("link", i))); err != nil {
			t.Fatal(err)
		}
	}
	root, err := safepath.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := readDir(root, &gateway.ReadDirRequest{DirPath: "/"}, most); err == nil || !strings.Contains(err.Error(), "exceeds maximum allowed size") {
		t.Errorf("the whole list: got %v, expected it to be too large", err)
	}
	some, err := readDir(root, &gateway.ReadDirRequest{DirPath: "/", IncludePattern: "link7*"}, most)
	if err != nil || len(some) != 11 {
		t.Errorf("a part of the list: got %d entries, %v", len(some), err)
	}
	size := proto.Size(&gateway.ReadDirResponse{Entries: some})
	if size += entryHead * len(some); size > most {
		t.Fatalf("the part has %d bytes, which shows nothing", size)
	}
	if _, err := readDir(root, &gateway.ReadDirRequest{DirPath: "/", IncludePattern: "link7*"}, size); err != nil {
		t.Errorf("a list that just fits: %v", err)
	}
}
