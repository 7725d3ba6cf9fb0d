package corpus

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image in words: lines that two builders must agree on.
type Image struct {
	Platform string
	Created  string   // "now" if it is of this run
	Config   string   // indented JSON, without the layers' digests
	Layers   []string // digests, of which equal ones need no look inside
	Files    []map[string]File
}

// File is what an archive says of a file.
type File struct {
	What string // kind, mode, owner, size, content and so on, in words
	Time string // "now" if it is of this run
}

// String is all that is known of the file.
func (f File) String() string { return f.What + " at " + f.Time }

// recent says of a time that it is of this run, and so one that no two builds share.
func recent(t time.Time) bool { return t.After(time.Now().Add(-24 * time.Hour)) }

// ReadImages reads the images of an OCI archive.
func ReadImages(archive []byte) ([]Image, error) {
	blobs := map[string][]byte{}
	tr := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read archive: %w", err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			return nil, fmt.Errorf("read archive: %w", err)
		}
		blobs[strings.TrimPrefix(path.Clean(h.Name), "blobs/sha256/")] = data
	}
	return readIndex(blobs, blobs["index.json"])
}

func readIndex(blobs map[string][]byte, data []byte) ([]Image, error) {
	var index ocispecs.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	var images []Image
	for _, d := range index.Manifests {
		blob := blobs[d.Digest.Encoded()]
		if strings.Contains(d.MediaType, "index") || strings.Contains(d.MediaType, "list") {
			more, err := readIndex(blobs, blob)
			if err != nil {
				return nil, err
			}
			images = append(images, more...)
			continue
		}
		read := func() (Image, error) { return readImage(blobs, blob) }
		if isAttestation(d) {
			read = func() (Image, error) { return readAttestation(blobs, d) }
		}
		img, err := read()
		if err != nil {
			return nil, err
		}
		if d.Platform != nil {
			p, err := json.Marshal(d.Platform)
			if err != nil {
				return nil, err
			}
			img.Platform = string(p)
		}
		images = append(images, img)
	}
	return images, nil
}

func readImage(blobs map[string][]byte, data []byte) (Image, error) {
	var img Image
	var manifest ocispecs.Manifest
	if err := json.Unmarshal(data, &manifest); err != nil {
		return img, fmt.Errorf("read manifest: %w", err)
	}
	var config map[string]any
	if err := json.Unmarshal(blobs[manifest.Config.Digest.Encoded()], &config); err != nil {
		return img, fmt.Errorf("read config: %w", err)
	}
	if rootfs, ok := config["rootfs"].(map[string]any); ok {
		if ids, ok := rootfs["diff_ids"].([]any); ok {
			rootfs["diff_ids"] = fmt.Sprintf("%d", len(ids))
		}
	}
	steadyTimes(config)
	img.Created, _ = config["created"].(string)
	text, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return img, err
	}
	img.Config = string(text)
	for _, l := range manifest.Layers {
		files, err := readLayer(blobs[l.Digest.Encoded()])
		if err != nil {
			return img, fmt.Errorf("read layer %s: %w", l.Digest, err)
		}
		img.Layers, img.Files = append(img.Layers, l.MediaType+" "+l.Digest.String()), append(img.Files, files)
	}
	return img, nil
}

// steadyTimes writes "now" in place of the times of this run.
func steadyTimes(config map[string]any) {
	steady := func(m map[string]any) {
		if text, ok := m["created"].(string); ok {
			if t, err := time.Parse(time.RFC3339Nano, text); err == nil && recent(t) {
				m["created"] = "now"
			}
		}
	}
	steady(config)
	history, _ := config["history"].([]any)
	for _, h := range history {
		if m, ok := h.(map[string]any); ok {
			steady(m)
		}
	}
}

// withoutDaemon keeps of the file ".git" of a submodule what it says of the place
// in the repository's git directory: BuildKit has it name its own folder, which is
// gone by then.
func withoutDaemon(data []byte) []byte {
	if _, module, ok := bytes.Cut(data, []byte("/modules/")); ok && bytes.HasPrefix(data, []byte("gitdir: ")) {
		return append([]byte("gitdir: …/modules/"), module...)
	}
	return data
}

func readLayer(blob []byte) (map[string]File, error) {
	r, err := compression.DecompressStream(bytes.NewReader(blob))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	files := map[string]File{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			return nil, err
		}
		if path.Base(h.Name) == ".git" && h.Typeflag == tar.TypeReg {
			data = withoutDaemon(data)
			h.Size = int64(len(data))
		}
		sum := sha256.Sum256(data)
		text := hex.EncodeToString(sum[:6])
		if len(data) < 500 {
			text = fmt.Sprintf("%q", data)
		}
		f := File{Time: "now"}
		if !recent(h.ModTime) {
			f.Time = h.ModTime.UTC().Format(time.RFC3339Nano)
		}
		attrs := ""
		for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			name, isAttr := strings.CutPrefix(k, "SCHILY.xattr.")
			if isAttr || strings.HasPrefix(k, "MSWINDOWS.") {
				attrs += fmt.Sprintf(" %s=%q", name, h.PAXRecords[k])
			}
		}
		f.What = fmt.Sprintf("%c %o %d:%d size %d device %d,%d link %q %s%s", h.Typeflag, h.Mode, h.Uid, h.Gid,
			h.Size, h.Devmajor, h.Devminor, h.Linkname, text, attrs)
		if before, twice := files[h.Name]; twice {
			f.What = before.What + " and again " + f.What
		}
		files[h.Name] = f
	}
}
