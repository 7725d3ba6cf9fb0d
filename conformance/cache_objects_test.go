package conformance

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// objectPlaces are the caches in stores of objects: a bucket of gofakes3, a
// container of Azurite, and both versions of GitHub's protocol.
func objectPlaces() []cachePlace {
	place := func(name, attrs, mode string, start func(t *testing.T) string) cachePlace {
		return cachePlace{name: name, partial: mode == "min", options: func(t *testing.T) (out, in []string) {
			where := "type=" + attrs + "," + start(t)
			return []string{"--export-cache", where + ",mode=" + mode}, []string{"--import-cache", where}
		}}
	}
	return []cachePlace{
		place("s3", "s3,prefix=some/", "max", bucket),
		place("s3 min", "s3,name=one;two", "min", bucket),
		place("azblob", "azblob,container=caches,prefix=some", "max", azurite),
		place("gha v1", "gha,version=1", "max", actions),
		place("gha v2", "gha,scope=other", "max", actions),
	}
}

const secretKey = "notforlogs"

// bucket starts an S3 server and returns the attributes that name a bucket.
func bucket(t *testing.T) string {
	t.Helper()
	b := s3mem.New()
	if err := b.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(gofakes3.New(b).Server())
	t.Cleanup(s.Close)
	return "region=nowhere,bucket=bucket,use_path_style=true,endpoint_url=" + s.URL + ",access_key_id=me,secret_access_key=" + secretKey
}

// azurite starts Azurite and returns the attributes that name an account.
func azurite(t *testing.T) string {
	t.Helper()
	program, err := filepath.Abs(filepath.Join("..", "bin", "azurite-blob"))
	if err != nil {
		t.Fatal(err)
	}
	key := base64.StdEncoding.EncodeToString([]byte(secretKey))
	addr := onFreePort(t, func(addr string) *exec.Cmd {
		host, port, _ := strings.Cut(addr, ":")
		cmd := exec.Command(program, "--disableProductStyleUrl", "--disableTelemetry", "--silent", "--blobHost", host, "--blobPort", port, "--location", t.TempDir())
		cmd.Env = append(os.Environ(), "AZURITE_ACCOUNTS=me:"+key)
		return cmd
	}, func(addr string) bool {
		resp, err := http.Get("http://" + addr + "/me?comp=list")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return true
	})
	return "account_name=me,account_url=http://" + addr + "/me,secret_access_key=" + key
}

// actionsProgram builds the server of Kiln's own tests, once.
var actionsProgram = sync.OnceValues(func() (string, error) {
	program, err := filepath.Abs(filepath.Join("..", "bin", "peer", "actions"))
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-trimpath", "-o", program, "internal/cache/cachetest/actions_program.go")
	build.Dir, build.Env = "..", append(os.Environ(), "CGO_ENABLED=0") // as Kiln itself is built
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the server of caches of GitHub Actions: %w\n%s", err, out)
	}
	return program, nil
})

// actions starts a server of caches of GitHub Actions and returns the attributes
// that name it, for both versions of its protocol.
func actions(t *testing.T) string {
	t.Helper()
	program, err := actionsProgram()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	var log bytes.Buffer
	cmd.Stderr = &log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server of caches: %v\n%s", err, log.String())
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	fields := strings.Fields(line)
	if err != nil || len(fields) != 2 {
		t.Fatalf("the server of caches says %q (%v)\n%s", line, err, log.String())
	}
	return "url=" + fields[0] + ",url_v2=" + fields[0] + "/,token=" + fields[1]
}

// TestCacheObjects has each kind of daemon use what each kind has written into a
// store of objects, and nobody's credentials told.
func TestCacheObjects(t *testing.T) {
	for _, place := range objectPlaces() {
		exchange(t, place)
	}
}
