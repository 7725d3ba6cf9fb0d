package history

import (
	"bytes"
	"cmp"
	"compress/flate"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"
)

// File is a file of which a step has read the content.
type File struct {
	Path   string `json:"p"`
	Digest string `json:"d"`
	// Files is set if it is so many files below a folder.
	Files int `json:"n,omitempty"`
}

// FileList is what a content digest is of. If files are told apart only to some
// depth, fold makes it one of less depth.
type FileList struct {
	Depth int    `json:"depth,omitempty"` // components of paths; 0 is all
	Files []File `json:"files"`
}

// MostFiles bounds a [FileList]. What has more files is told of by folders, so
// that a change is named by the folder that it is in.
const MostFiles = 4096

const largestList = 8 << 20 // bytes, decoded

// KeepFiles keeps the list of files that a content digest is of, unless it is
// known. It is asked for once per digest.
func (l *Ledger) KeepFiles(content string, list func() ([]File, error)) error {
	if _, ok := l.db.Files(content); ok {
		return nil
	}
	all, err := list()
	if err != nil {
		return err
	}
	files := FileList{Files: all}.limit(MostFiles)
	var b bytes.Buffer
	w, ok := l.writers.Get().(*flate.Writer)
	if !ok {
		if w, err = flate.NewWriter(nil, flate.BestSpeed); err != nil {
			return fmt.Errorf("compress list of files: %w", err)
		}
	}
	defer l.writers.Put(w)
	w.Reset(&b)
	if err := errors.Join(json.NewEncoder(w).Encode(files), w.Close()); err != nil {
		return fmt.Errorf("encode list of files: %w", err)
	}
	return l.db.PutFiles(content, b.Bytes())
}

// Files returns the list of files that a content digest is of, if it is known.
func (l *Ledger) Files(content string) (list FileList, ok bool) {
	b, ok := l.db.Files(content)
	if !ok {
		return list, false
	}
	r := io.LimitReader(flate.NewReader(bytes.NewReader(b)), largestList)
	return list, json.NewDecoder(r).Decode(&list) == nil
}

// changedFiles tells which files differ. It is empty where that is not known.
func (l *Ledger) changedFiles(was, now string) (out []Difference) {
	a, ok := l.Files(was)
	b, also := l.Files(now)
	if !ok || !also {
		return nil
	}
	if a.Depth != b.Depth { // each is told of as little as the other
		a, b = a.fold(b.Depth), b.fold(a.Depth)
	}
	before := map[string]File{}
	for _, f := range a.Files {
		before[f.Path] = f
	}
	for _, f := range b.Files {
		old, had := before[f.Path]
		delete(before, f.Path)
		if had && old.Digest == f.Digest {
			continue
		}
		out = append(out, Difference{Kind: kindOf(f), Name: f.Path, Was: old.Digest, Now: f.Digest})
	}
	for _, f := range before {
		out = append(out, Difference{Kind: kindOf(f), Name: f.Path, Was: f.Digest})
	}
	slices.SortFunc(out, func(x, y Difference) int {
		return cmp.Or(cmp.Compare(rank(x), rank(y)), cmp.Compare(x.Name, y.Name))
	})
	return out
}

func kindOf(f File) string {
	if f.Files > 0 {
		return KindFolder
	}
	return KindFile
}

// rank has files that changed told of before those that came and went, and
// folders, whose content that is, last.
func rank(d Difference) int {
	switch {
	case d.Name != "" && d.Name[len(d.Name)-1] == '/':
		return 2
	case d.Was == "" || d.Now == "":
		return 1
	}
	return 0
}

// limit folds until there are at most so many entries. One folder of more
// leaves nothing to tell.
func (l FileList) limit(most int) FileList {
	out := l
	for depth := deepest(l.Files) - 1; len(out.Files) > most && depth > 0; depth-- {
		out = out.fold(depth)
	}
	if len(out.Files) > most {
		return FileList{Depth: 1}
	}
	return out
}

// fold tells of what is deeper than depth by folders. To fold twice is as good
// as to fold once.
func (l FileList) fold(depth int) FileList {
	if depth <= 0 || l.Depth > 0 && l.Depth <= depth {
		return l
	}
	out := FileList{Depth: depth}
	sums := map[string]*[sha256.Size]byte{}
	counts := map[string]int{}
	for _, f := range l.Files {
		folder, deep := cut(f.Path, depth)
		if !deep {
			out.Files = append(out.Files, f)
			continue
		}
		sum := sums[folder]
		if sum == nil {
			sum = &[sha256.Size]byte{}
			sums[folder] = sum
		}
		one := sha256.Sum256([]byte(f.Path + "\x00" + f.Digest))
		if f.Files > 0 { // folded before: what it is the sum of goes on
			one = [sha256.Size]byte{}
			if b, err := hex.DecodeString(digest.Digest(f.Digest).Encoded()); err == nil {
				copy(one[:], b)
			}
		}
		for i := range sum {
			sum[i] ^= one[i] // in any order, and in any steps
		}
		counts[folder] += max(f.Files, 1)
	}
	for folder, sum := range sums {
		out.Files = append(out.Files, File{
			Path: folder + "/…", Digest: string(digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum[:]))), Files: counts[folder],
		})
	}
	slices.SortFunc(out.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return out
}

// cut returns the first depth components of what is deeper.
func cut(name string, depth int) (folder string, deep bool) {
	parts := strings.Split(strings.TrimSuffix(name, "/"), "/")
	if len(parts) <= depth {
		return "", false
	}
	return strings.Join(parts[:depth], "/"), true
}

func deepest(files []File) (n int) {
	for _, f := range files {
		n = max(n, strings.Count(strings.TrimSuffix(f.Path, "/"), "/")+1)
	}
	return n
}
