package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/conformance/peer"
)

// wayToShare is a kind of cache, beside that of a registry with mode=max, in which the
// scenarios' caches are handed over. The texts have DAEMON for who wrote it.
type wayToShare struct{ name, out, in string }

func waysToShare(where, folder string, scenario int) (all []wayToShare) {
	name := fmt.Sprintf("%s/DAEMON-%d", where, scenario)
	for _, w := range []wayToShare{
		{"local max", "--export-cache type=local,mode=max,dest=DIR/max", "type=local,src=DIR/max"},
		{"registry min", "--export-cache type=registry,mode=min,ref=NAME:min", "type=registry,ref=NAME:min"},
		{"inline", "--export-cache type=inline --output type=image,push=true,name=NAME:inline", "type=registry,ref=NAME:inline"},
		{"local min", "--export-cache type=local,mode=min,dest=DIR/min", "type=local,src=DIR/min"},
		{"inline max", "--export-cache type=inline,mode=max --output type=image,push=true,name=NAME:inline", "type=registry,ref=NAME:inline"},
	} {
		r := strings.NewReplacer("NAME", name, "DIR", filepath.Join(folder, "DAEMON"))
		all = append(all, wayToShare{w.name, r.Replace(w.out), r.Replace(w.in)})
	}
	return all
}

// turnsToShare are the ways that builds of a scenario go: one after the other has its
// turn, and with CACHE_ALL=1 each scenario goes all. One build cannot go all, for a client
// names one manifest in all of its folders, and an image has one inline cache.
func turnsToShare(all []wayToShare, scenario int) [][]wayToShare {
	if os.Getenv("CACHE_ALL") == "" {
		return [][]wayToShare{all[scenario%len(all) : scenario%len(all)+1]}
	}
	return [][]wayToShare{all[:3], all[3:]}
}

// builds are the ways that go with one build. A cache that is not to have all goes with
// one of its own: of a step that is not in the result, BuildKit writes there what another
// cache has made a blob of by then, which is now this and now that.
func builds(ways []wayToShare) [][]wayToShare {
	var alone [][]wayToShare
	var together []wayToShare
	for _, w := range ways {
		if strings.HasSuffix(w.name, " max") {
			together = append(together, w)
		} else {
			alone = append(alone, []wayToShare{w})
		}
	}
	return append(alone, together)
}

// export are the arguments with which d writes its caches.
func export(ways []wayToShare, d *peer.Daemon) (args []string) {
	for _, w := range ways {
		args = append(args, strings.Fields(strings.ReplaceAll(w.out, "DAEMON", d.Name))...)
	}
	return args
}

// handOver has both daemons, which know nothing, build with the cache that each has
// written before the change: BuildKit's gives Kiln no fewer hits than BuildKit, and
// Kiln's gives BuildKit no fewer than its own does.
func (s scenario) handOver(t *testing.T, dir string, kiln, buildkit *peer.Daemon, w wayToShare) {
	t.Helper()
	from := func(d *peer.Daemon) []string {
		return []string{"--import-cache", strings.ReplaceAll(w.in, "DAEMON", d.Name)}
	}
	var imported [2][]string
	each(kiln, buildkit, func(k int, d *peer.Daemon) {
		forget(t, d)
		imported[k] = s.try(t, d, dir, 1, from(buildkit)...)
	})
	allow(t, w.name+", BuildKit's cache", imported[0], imported[1], "its cache has the digests of contents, too")
	forget(t, buildkit)
	theirs := s.try(t, buildkit, dir, 1, from(kiln)...)
	allow(t, w.name+", Kiln's cache on BuildKit", theirs, imported[1], "Kiln's cache has more links")
}
