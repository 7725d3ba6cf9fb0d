package local

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/progress"
)

var (
	_ cache.Shelves  = (*Place)(nil)
	_ cache.Finisher = (*Shelf)(nil)
)

// Shelf opens the records in a folder, "dest" to write and "src" to read.
func (p *Place) Shelf(ctx context.Context, attrs map[string]string, write bool) (cache.Shelf, error) {
	key, who := "src", "importer"
	if write {
		key, who = "dest", "exporter"
	}
	if attrs[key] == "" {
		return nil, fmt.Errorf("local cache %s requires %s: say which folder, as in type=local,%s=DIR", who, key, key)
	}
	s := &Shelf{place: p, id: storePrefix + attrs[key], read: map[digest.Digest]int64{}, kept: map[string]entry{}}
	return s, s.use(ctx, func(ctx context.Context, store content.Store) error {
		if write {
			// A store without any blob cannot be listed.
			if err := s.writeConfig(ctx, store); err != nil {
				return err
			}
		}
		return s.load(ctx, store)
	})
}

// writeConfig writes the empty config of manifests.
func (s *Shelf) writeConfig(ctx context.Context, store content.Store) error {
	d := ocispecs.DescriptorEmptyJSON
	return write(progress.WithStep(ctx, nil), store, s.place.writer, "writing config", d, bytesOf(d.Data))
}

// Shelf is a [cache.Shelf] in a folder of a client, of which the client offers
// nothing but a content store: there are no names in it. So a record is an entry
// of a pack, a blob that is known by its size, and all packs are read when the
// folder is opened. Of several entries for one name all readers choose the same.
type Shelf struct {
	place *Place
	id    string

	mu     sync.Mutex
	read   map[digest.Digest]int64 // packs in kept, and their sizes
	kept   map[string]entry        // by name
	loaded time.Time
	turn   uint64 // of the place, when the folder was read
}

// pack is the content of one blob. Spaces follow until it has a marked size.
type pack struct {
	Version int     `json:"kiln.cache.pack"`
	Entries []entry `json:"entries"`
}

const packVersion = 1

const packType = "application/vnd.kiln.cache.pack.v1+json"

// A pack's size leaves packRest when it is divided by packUnit, bytes.
const packUnit, packRest = 4096, 1357

const maxPack = 16 << 20 // bytes; more make several packs

const maxPacks = 10_000 // that are read of one folder

type entry struct {
	Name   string                `json:"name"`
	Turn   uint64                `json:"turn"` // how often it was replaced
	At     time.Time             `json:"at"`
	Record []byte                `json:"record"`
	Needs  []ocispecs.Descriptor `json:"needs,omitempty"`
}

// over tells whether e counts and o does not.
func (e entry) over(o entry) bool {
	if e.Turn != o.Turn {
		return e.Turn > o.Turn
	}
	// Within one turn, whoever came first was told that it is kept.
	if c := e.At.Compare(o.At); c != 0 {
		return (c < 0) == (e.Turn == 0)
	}
	return digest.FromBytes(e.Record) < digest.FromBytes(o.Record)
}

func known[K comparable, V any](m map[K]V, k K) bool { _, ok := m[k]; return ok }

func isPack(size int64) bool { return size%packUnit == packRest && size <= 2*maxPack }

// patience is how long the folder's lock is waited for. Whoever has it may wait
// for a client that hangs; without it, two may both put the same name.
const patience = 10 * time.Second

// use calls f with the folder, and its lock.
func (s *Shelf) use(ctx context.Context, f func(context.Context, content.Store) error) error {
	waiting, cancel := context.WithTimeout(ctx, patience)
	unlock, err := s.place.locks.Lock(waiting, s.id)
	cancel()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err == nil {
		defer unlock()
	}
	return withStore(ctx, s.id, f)
}

// load reads the packs that have come since the last time.
func (s *Shelf) load(ctx context.Context, store content.Store) error {
	turn := s.place.turns.of(s.id)
	for again := 0; ; again++ {
		lost, err := s.loadOnce(ctx, store)
		// A pack that vanishes while it is looked for has become part of another.
		if err != nil || !lost || again == 3 {
			s.mu.Lock()
			s.loaded, s.turn = time.Now(), turn
			s.mu.Unlock()
			return err
		}
	}
}

func (s *Shelf) loadOnce(ctx context.Context, store content.Store) (lost bool, err error) {
	var packs []content.Info
	err = store.Walk(ctx, func(i content.Info) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if isPack(i.Size) && !known(s.read, i.Digest) && len(packs) < maxPacks {
			packs = append(packs, i)
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("list blobs: %w", err)
	}
	missing, err := cache.MissingOf(ctx, descriptors(packs), atOnce, func(ctx context.Context, d ocispecs.Descriptor) (bool, error) {
		b, err := content.ReadBlob(ctx, store, d)
		if errdefs.IsNotFound(err) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("read %s: %w", d.Digest, err)
		}
		var p pack
		if d.Digest.Algorithm().FromBytes(b) == d.Digest && json.Unmarshal(b, &p) == nil && p.Version == packVersion {
			s.keep(d, p.Entries)
		}
		return true, nil
	})
	return len(missing) > 0, err
}

func descriptors(infos []content.Info) (out []ocispecs.Descriptor) {
	for _, i := range infos {
		out = append(out, ocispecs.Descriptor{Digest: i.Digest, Size: i.Size})
	}
	return out
}

func (s *Shelf) keep(of ocispecs.Descriptor, entries []entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read[of.Digest] = of.Size
	for _, e := range entries {
		if old, ok := s.kept[e.Name]; cache.CheckRecord(e.Name, e.Record) == nil && (!ok || e.over(old)) {
			s.kept[e.Name] = e
		}
	}
}

// Origin names the folder.
func (s *Shelf) Origin() string { return s.id }

// fresh is how long others' records may stay unseen.
const fresh = time.Second

// Records looks the names up, after others' records if some are missing.
func (s *Shelf) Records(ctx context.Context, names []string) (map[string][]byte, error) {
	for _, n := range names {
		if err := cache.CheckRecord(n, nil); err != nil {
			return nil, err
		}
	}
	found, stale := s.lookUp(names)
	if len(found) < len(names) && stale {
		if err := s.use(ctx, s.load); err != nil {
			return nil, err
		}
		found, _ = s.lookUp(names)
	}
	return found, context.Cause(ctx)
}

func (s *Shelf) lookUp(names []string) (found map[string][]byte, stale bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found = map[string][]byte{}
	for _, n := range names {
		if e, ok := s.kept[n]; ok {
			found[n] = append([]byte{}, e.Record...)
		}
	}
	return found, time.Since(s.loaded) > fresh || s.turn != s.place.turns.of(s.id)
}

// Put writes a pack of one entry.
func (s *Shelf) Put(ctx context.Context, name string, record []byte, needs []ocispecs.Descriptor, replace bool) (stored bool, err error) {
	if err := cache.CheckRecord(name, record); err != nil {
		return false, err
	}
	err = s.use(ctx, func(ctx context.Context, store content.Store) error {
		if _, stale := s.lookUp(nil); stale {
			if err := s.load(ctx, store); err != nil {
				return err
			}
		}
		s.mu.Lock()
		old, there := s.kept[name]
		s.mu.Unlock()
		if there && !replace {
			return nil
		}
		e := entry{Name: name, At: time.Now().UTC(), Record: record}
		for _, n := range needs {
			e.Needs = append(e.Needs, ocispecs.Descriptor{MediaType: n.MediaType, Digest: n.Digest, Size: n.Size})
		}
		if replace {
			e.Turn = old.Turn + 1
		}
		d, err := s.write(ctx, store, []entry{e})
		if err != nil {
			return err
		}
		s.keep(d, []entry{e})
		stored = true
		next := s.place.turns.next(s.id)
		s.mu.Lock()
		s.turn = next
		s.mu.Unlock()
		return nil
	})
	return stored, err
}

// write makes a pack of entries.
func (s *Shelf) write(ctx context.Context, store content.Store, entries []entry) (ocispecs.Descriptor, error) {
	b, err := json.Marshal(pack{packVersion, entries})
	if err != nil {
		return ocispecs.Descriptor{}, fmt.Errorf("encode records: %w", err)
	}
	for len(b)%packUnit != packRest {
		b = append(b, ' ')
	}
	d := ocispecs.Descriptor{MediaType: packType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return d, write(progress.WithStep(ctx, nil), store, s.place.writer, "writing records", d, bytesOf(b))
}

// Missing asks for each blob.
func (s *Shelf) Missing(ctx context.Context, blobs []ocispecs.Descriptor) (missing []ocispecs.Descriptor, err error) {
	err = withStore(ctx, s.id, func(ctx context.Context, store content.Store) (err error) {
		missing, err = cache.MissingOf(ctx, blobs, 4*atOnce, func(ctx context.Context, d ocispecs.Descriptor) (bool, error) {
			info, err := store.Info(ctx, d.Digest)
			if errdefs.IsNotFound(err) {
				return false, nil
			}
			return err == nil && info.Size == d.Size, err
		})
		return err
	})
	return missing, err
}

// Upload sends a blob, which the client verifies.
func (s *Shelf) Upload(ctx context.Context, blob ocispecs.Descriptor, open func(context.Context) (io.ReadCloser, error)) error {
	return withStore(ctx, s.id, func(ctx context.Context, store content.Store) error {
		return write(ctx, store, s.place.writer, "writing layer", blob, func() (io.ReadCloser, error) { return open(ctx) })
	})
}

// mostPacks is how many packs a folder may have before they become one.
const mostPacks = 64

// Finish makes one pack of many. The root is a manifest for the client to name in
// the folder's index, by which the records and what they need are in use.
func (s *Shelf) Finish(ctx context.Context, root bool) (found *ocispecs.Descriptor, err error) {
	err = s.use(ctx, func(ctx context.Context, store content.Store) error {
		if err := s.load(ctx, store); err != nil {
			return err
		}
		old, err := s.repack(ctx, store)
		if err != nil {
			return err
		}
		if root {
			if found, err = s.writeRoot(ctx, store); err != nil {
				return err
			}
		}
		for _, d := range old {
			// What stays is only read once more.
			_ = store.Delete(ctx, d)
		}
		return nil
	})
	return found, err
}

// writeRoot writes a manifest of all packs and what is in them.
func (s *Shelf) writeRoot(ctx context.Context, store content.Store) (*ocispecs.Descriptor, error) {
	m := ocispecs.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest,
		ArtifactType: "application/vnd.kiln.cache.v1", Config: ocispecs.DescriptorEmptyJSON, Layers: s.needed(),
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode manifest of cache: %w", err)
	}
	root := ocispecs.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := s.writeConfig(ctx, store); err != nil {
		return nil, err
	}
	return &root, write(ctx, store, s.place.writer, "writing cache manifest", root, bytesOf(b))
}

// repack writes all entries into as few packs as can be, if there are many, and
// returns those that are of no more use.
func (s *Shelf) repack(ctx context.Context, store content.Store) (old []digest.Digest, err error) {
	s.mu.Lock()
	var all []entry
	for _, e := range s.kept {
		all = append(all, e)
	}
	for d := range s.read {
		old = append(old, d)
	}
	s.mu.Unlock()
	if len(old) <= mostPacks {
		return nil, nil
	}
	slices.SortFunc(all, func(a, b entry) int { return cmp.Compare(a.Name, b.Name) })
	var packs []ocispecs.Descriptor
	for len(all) > 0 {
		n, size := 0, 0
		for n < len(all) && (n == 0 || size+len(all[n].Record)*4/3 < maxPack) {
			size += len(all[n].Record)*4/3 + 200*(1+len(all[n].Needs))
			n++
		}
		d, err := s.write(ctx, store, all[:n])
		if err != nil {
			return nil, err
		}
		packs, all = append(packs, d), all[n:]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read = map[digest.Digest]int64{}
	for _, d := range packs {
		s.read[d.Digest] = d.Size
		old = slices.DeleteFunc(old, func(o digest.Digest) bool { return o == d.Digest })
	}
	return old, nil
}

// needed are the packs and the blobs that records need, each once.
func (s *Shelf) needed() (out []ocispecs.Descriptor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, size := range s.read {
		out = append(out, ocispecs.Descriptor{MediaType: packType, Digest: d, Size: size})
	}
	for _, e := range s.kept {
		out = append(out, e.Needs...)
	}
	slices.SortFunc(out, func(a, b ocispecs.Descriptor) int { return cmp.Compare(a.Digest, b.Digest) })
	return slices.CompactFunc(out, func(a, b ocispecs.Descriptor) bool { return a.Digest == b.Digest })
}

// turns counts what this process has put into folders. Several may share a count.
type turns struct {
	mu     sync.Mutex
	counts [64]uint64
}

func (t *turns) of(id string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counts[t.slot(id)]
}

func (t *turns) next(id string) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[t.slot(id)]++
	return t.counts[t.slot(id)]
}

func (t *turns) slot(id string) int {
	return int(digest.FromString(id).Encoded()[0]) % len(t.counts)
}
