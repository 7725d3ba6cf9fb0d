package gc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
)

// Place is a part of the root folder that no record tells of.
type Place struct {
	Name, Description string
	Size              int64 // bytes on disk
}

// Measure is what everything below the root takes.
type Measure struct {
	Records int64 // bytes of what [Collector.Usage] lists
	Places  []Place
	Used    int64 // bytes, all together
}

// The places, in the order in which they are told of.
const (
	placeDatabase  = "database"
	placeHistory   = "history"
	placeBlobs     = "images"
	placeSnapshots = "layers"
	placeMounts    = "mounts"
	placeTemporary = "temporary"
	placeOther     = "other"
)

func places() []Place {
	return []Place{
		{Name: placeDatabase, Description: "what is known of steps, layers and builds"},
		{Name: placeHistory, Description: "logs and attestations of builds (kiln history rm)"},
		{Name: placeBlobs, Description: "manifests and configs of images (kiln images rm), and what is being received"},
		{Name: placeSnapshots, Description: "folders that hold layers, and files of steps under way"},
		{Name: placeMounts, Description: "cache mounts and git repositories in the making"},
		{Name: placeTemporary, Description: "of builds under way"},
		{Name: placeOther, Description: "files that are not the daemon's"},
	}
}

// Measure tells what everything below the root takes. The sizes of records are
// those that were taken when they were made; all else is looked at.
func (c *Collector) Measure(ctx context.Context) (Measure, error) {
	layers, others, err := c.usage(ctx)
	if err != nil {
		return Measure{}, err
	}
	w, err := c.newWalk()
	if err != nil {
		return Measure{}, fmt.Errorf("measure disk usage: %w", err)
	}
	sizes := map[string]int64{}
	entries, err := os.ReadDir(c.Root)
	if err != nil {
		return Measure{}, fmt.Errorf("measure disk usage: %w", err)
	}
	for _, e := range entries {
		sizes[placeOf(e)] += w.size(filepath.Join(c.Root, e.Name()))
		if err := ctx.Err(); err != nil {
			return Measure{}, err
		}
	}
	for _, u := range layers {
		sizes[placeBlobs] -= u.Blobs
	}
	sizes[placeMounts] -= sizeOf(others)
	sizes[placeOther] += w.own(c.Root)
	m := Measure{Records: sizeOf(layers) + sizeOf(others)}
	m.Used = m.Records
	for _, p := range places() {
		// What was removed while it was looked at could make it less than nothing.
		p.Size = max(sizes[p.Name], 0)
		m.Used += p.Size
		m.Places = append(m.Places, p)
	}
	return m, nil
}

// placeOf says which place an entry of the root folder belongs to.
func placeOf(e fs.DirEntry) string {
	switch name := e.Name(); {
	case strings.HasPrefix(name, "kiln.db"):
		return placeDatabase
	case name == "history":
		return placeHistory
	case name == "content":
		return placeBlobs
	case name == "snapshots":
		return placeSnapshots
	case name == "cachemounts", name == "git":
		return placeMounts
	case name == "tmp", name == "run", name == "layers":
		return placeTemporary
	}
	return placeOther
}

// walk counts what folders take on disk, as du does: links of a file once, and
// no other file system.
type walk struct {
	skip   map[string]bool // folders that count elsewhere, and mount points
	linked map[string]bool // folders whose files are links of what counts elsewhere
	seen   map[inode]bool
}

type inode struct{ dev, ino uint64 }

func (c *Collector) newWalk() (*walk, error) {
	w := &walk{skip: map[string]bool{}, linked: map[string]bool{}, seen: map[inode]bool{}}
	counted, linked := c.Layers.Folders()
	for _, dir := range counted {
		w.skip[filepath.Clean(dir)] = true
	}
	for _, dir := range linked {
		w.linked[filepath.Clean(dir)] = true
	}
	root, err := filepath.EvalSymlinks(c.Root)
	if err != nil {
		return nil, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	for _, m := range mounts {
		if rel, err := filepath.Rel(root, m.Mountpoint); err == nil && rel != "." && filepath.IsLocal(rel) {
			w.skip[filepath.Join(c.Root, rel)] = true
		}
	}
	return w, nil
}

// own is what a file or folder itself takes.
func (w *walk) own(name string) int64 {
	fi, err := os.Lstat(name)
	if err != nil {
		return 0 // gone meanwhile: it takes nothing
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	if !fi.IsDir() && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if w.seen[id] {
			return 0
		}
		w.seen[id] = true
	}
	return st.Blocks * 512
}

// size is what all below a name takes, and the name.
func (w *walk) size(name string) int64 { return w.tree(name, false) }

func (w *walk) tree(name string, links bool) (n int64) {
	if w.skip[name] {
		return 0
	}
	links = links || w.linked[name]
	n = w.own(name)
	entries, err := os.ReadDir(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && len(entries) == 0 {
		return n // no folder, or one that cannot be read
	}
	for _, e := range entries {
		child := filepath.Join(name, e.Name())
		switch {
		case e.IsDir():
			n += w.tree(child, links)
		case links && hasLinks(child):
		default:
			n += w.own(child)
		}
	}
	return n
}

func hasLinks(name string) bool {
	fi, err := os.Lstat(name)
	if err != nil {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Nlink > 1
}

// size is what a place takes.
func (m Measure) size(place string) int64 {
	for _, p := range m.Places {
		if p.Name == place {
			return p.Size
		}
	}
	return 0
}

// Largest lists the places that take most, for errors.
func (m Measure) largest() string {
	all := append(slices.Clone(m.Places), Place{Name: "records of the cache", Size: m.Records})
	slices.SortStableFunc(all, func(a, b Place) int { return cmp.Compare(b.Size, a.Size) })
	var words []string
	for _, p := range all[:min(len(all), 3)] {
		words = append(words, fmt.Sprintf("%s %s", p.Name, bytesText(p.Size)))
	}
	return strings.Join(words, ", ")
}
