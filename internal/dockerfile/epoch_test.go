package dockerfile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// timedGateway tells the times of sources, too.
type timedGateway struct {
	*fakeGateway
	asked []string
}

const (
	committed = 1700000001
	modified  = 1700000002
	packed    = 1700000003
)

func (g *timedGateway) ResolveSource(ctx context.Context, op *llb.SourceOp, opt frontend.ResolveOpt) (*frontend.SourceMeta, error) {
	scheme, _, _ := strings.Cut(op.Identifier, "://")
	if scheme != "git" && scheme != "http" && scheme != "https" {
		return g.fakeGateway.ResolveSource(ctx, op, opt)
	}
	g.mu.Lock()
	g.asked = append(g.asked, op.Identifier)
	g.mu.Unlock()
	meta := &frontend.SourceMeta{Op: op, Digest: digest.FromString(op.Identifier)}
	if scheme == "git" {
		meta.Git = &frontend.GitMeta{}
		if opt.GitObjects {
			meta.Git.CommitObject = []byte("tree x\nauthor A <a> 1 +0000\ncommitter <C> <c@example.com> 1700000001 -0800\n\ncommitter D <d> 9 +0000\n")
		}
		return meta, nil
	}
	meta.HTTP = &frontend.HTTPMeta{}
	if strings.Contains(op.Identifier, "modified") {
		t := time.Unix(modified, 0)
		meta.HTTP.LastModified = &t
	}
	return meta, nil
}

func tarOf(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "Dockerfile", Typeflag: tar.TypeReg, Size: 13, ModTime: time.Unix(packed-5, 0)},
		{Name: "new", Typeflag: tar.TypeReg, ModTime: time.Unix(packed, 0)},
		{Name: "dir", Typeflag: tar.TypeDir, ModTime: time.Unix(packed+100, 0)},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("FROM scratch\n")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestEpochOfSources takes the time from what the epoch names.
func TestEpochOfSources(t *testing.T) {
	archive := tarOf(t)
	const plain = "FROM scratch\nARG SOURCE_DATE_EPOCH\nENV E=$SOURCE_DATE_EPOCH\n"
	for name, tc := range map[string]struct {
		opts map[string]string
		file string
		want int64 // 0 for none
		err  string
	}{
		"number":            {map[string]string{"build-arg:SOURCE_DATE_EPOCH": "5"}, plain, 5, ""},
		"context of git":    {map[string]string{"build-arg:SOURCE_DATE_EPOCH": "context", "context": "https://example.com/x.git"}, plain, committed, ""},
		"context of file":   {map[string]string{"build-arg:SOURCE_DATE_EPOCH": "context", "context": "https://example.com/modified"}, plain, modified, ""},
		"context of tar":    {map[string]string{"build-arg:SOURCE_DATE_EPOCH": "context", "context": "https://example.com/tar"}, plain, packed, ""},
		"context of client": {map[string]string{"build-arg:SOURCE_DATE_EPOCH": "context"}, plain, 0, ""},
		"argument":          {map[string]string{"context": "https://example.com/x.git"}, "ARG SOURCE_DATE_EPOCH=context\n" + plain, committed, ""},
		"named git":         {map[string]string{"context:src": "https://example.com/x.git"}, "ARG SOURCE_DATE_EPOCH=src\n" + plain, committed, ""},
		"named tar":         {map[string]string{"context:src": "https://example.com/tar"}, "ARG SOURCE_DATE_EPOCH=src\n" + plain, packed, ""},
		"named image":       {map[string]string{"context:src": "docker-image://alpine"}, "ARG SOURCE_DATE_EPOCH=src\n" + plain, 0, ""},
		"stage":             {nil, "ARG SOURCE_DATE_EPOCH=src\nARG V=modified\nFROM scratch AS src\nARG V\nARG F=$V\nADD https://example.com/$F /\n" + plain, modified, ""},
		"stage of git":      {nil, "ARG SOURCE_DATE_EPOCH=SRC\nFROM scratch AS src\nADD https://example.com/x.git#v1 /\n" + plain, committed, ""},
		"overridden":        {map[string]string{"build-arg:SOURCE_DATE_EPOCH": "7"}, "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nCOPY x /\n" + plain, 7, ""},
		"nothing":           {nil, "ARG SOURCE_DATE_EPOCH=nosuch\n" + plain, 0, "invalid SOURCE_DATE_EPOCH: nosuch"},
		"stage of copies":   {nil, "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nCOPY x /\n" + plain, 0, "does not meet source-only requirements: unsupported COPY instruction"},
		"stage of two":      {nil, "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nADD http://a/b http://a/c /\n" + plain, 0, "exactly one remote ADD"},
		"stage of a file":   {nil, "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nADD x /\n" + plain, 0, "single HTTP(S) or Git ADD"},
		"stage of none":     {nil, "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\n" + plain, 0, "exactly one remote ADD"},
		"stage of image":    {nil, "ARG SOURCE_DATE_EPOCH=src\nFROM alpine AS src\nADD http://a/b /\n" + plain, 0, "must use FROM scratch"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			gw := &timedGateway{fakeGateway: newFakeGateway(map[string]string{
				"dockerfile/Dockerfile": tc.file, "git://example.com/x.git/Dockerfile": tc.file,
				"https://example.com/tar": archive, "https://example.com/modified": tc.file,
			})}
			opts := map[string]string{}
			if strings.HasSuffix(tc.opts["context"], "/tar") {
				opts["dockerfilekey"] = "dockerfile"
			}
			maps.Copy(opts, tc.opts)
			res, err := New().Build(t.Context(), frontend.Request{Opts: opts, Worker: ocispecs.Platform{OS: "linux", Architecture: "amd64"}}, gw)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("got %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkEpoch(t, res, tc.want)
		})
	}
}

// checkEpoch holds all that tells of an epoch against it.
func checkEpoch(t *testing.T, res *frontend.Result, want int64) {
	t.Helper()
	var config imageConfig
	if err := json.Unmarshal(res.Platforms[0].Config, &config); err != nil {
		t.Fatal(err)
	}
	text := ""
	if want != 0 {
		text = time.Unix(want, 0).UTC().Format(time.RFC3339)
	}
	var created string
	for _, h := range config.History {
		if h.Created != nil {
			created = h.Created.Format(time.RFC3339)
		}
	}
	meta := res.Meta["source.date.epoch"]
	if created != text || (len(meta) > 0) != (want != 0) {
		t.Errorf("history of %q, meta %s; want %q", created, meta, text)
	}
	for _, e := range config.Config.Env {
		if v, ok := strings.CutPrefix(e, "E="); ok && v != string(meta) {
			t.Errorf("the argument is %q, want %s", v, meta)
		}
	}
}

func TestNewestFile(t *testing.T) {
	plain := tarOf(t)
	var zipped, zstandard bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write([]byte(plain)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := zstd.NewWriter(&zstandard)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte(plain)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"tar": plain, "gzip": zipped.String(), "zstd": zstandard.String()} {
		if got, err := newestFile(strings.NewReader(data)); err != nil || got == nil || got.Unix() != packed {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	for name, data := range map[string]string{"empty": "", "short": "hi", "text": strings.Repeat("hello ", 1000)} {
		if got, err := newestFile(strings.NewReader(data)); err != nil || got != nil {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	if _, err := newestFile(strings.NewReader(plain[:1024+300])); err == nil {
		t.Error("half an archive has a time")
	}
	for _, commit := range []string{"", "tree x\n\n", "committer x\n\n", "committer A <a> soon +0000\n\n"} {
		if _, err := commitTime([]byte(commit)); err == nil {
			t.Errorf("commit %q has a time", commit)
		}
	}
}
