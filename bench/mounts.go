package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kiln-build/kiln/conformance/peer"
)

// mountFiles is how many small files the cache mount has, as one of npm's.
const mountFiles = 50_000

func mountCases() []benchCase {
	return []benchCase{{
		name: "cache-mount", rows: []string{"cache-mount-export", "cache-mount-export-changed", "cache-mount-import"},
		rounds: 1, prepare: prepareMount, run: runMount,
	}}
}

func prepareMount(r *roundRun) error {
	id := "m" + r.nonce
	mount := "RUN --mount=type=cache,id=" + id + ",target=/c"
	for folder, text := range map[string]string{
		"fill":   "FROM base\n" + mount + " --mount=target=/in /bin/busybox cp -a /in/. /c/\n",
		"change": "FROM base\n" + mount + " echo changed > /c/dir7/" + fmt.Sprintf("file%d", 7*100) + "\n",
		// What people do with BuildKit, which cannot export cache mounts.
		"export": "FROM base AS copy\n" + mount + " /bin/busybox cp -a /c /out\nFROM scratch\nCOPY --from=copy /out /\n",
		"again":  "FROM base AS copy\n" + mount + " /bin/busybox cp -a /c /out && true\nFROM scratch\nCOPY --from=copy /out /\n",
		"import": "FROM base\nRUN --mount=type=cache,id=other" + id + ",target=/c --mount=target=/in /bin/busybox cp -a /in/. /c/\n",
	} {
		if err := peer.WriteFiles(filepath.Join(r.dir, folder), map[string]string{"Dockerfile": text}); err != nil {
			return err
		}
	}
	for d := range mountFiles / 100 {
		files := map[string]string{}
		for f := range 100 {
			n := d*100 + f
			files[fmt.Sprintf("file%d", n)] = fmt.Sprintf("%s %d\n", r.nonce, n)
		}
		if err := peer.WriteFiles(filepath.Join(r.dir, "fill", fmt.Sprintf("dir%d", d)), files); err != nil {
			return err
		}
	}
	return nil
}

// runMount times the ways of a cache mount out of and into a daemon: Kiln's
// commands, and on BuildKit builds that copy it.
func runMount(ctx context.Context, r *roundRun) error {
	id := "m" + r.nonce
	out := filepath.Join(r.out, id)
	defer os.RemoveAll(out)
	folder := func(name, output string) buildSpec {
		return buildSpec{Build: peer.Build{Context: filepath.Join(r.dir, name), Output: output}}
	}
	ours := func(args ...string) buildSpec {
		return buildSpec{command: append([]string{r.engine.BuildArgs(peer.Build{})[0], "cache", "mounts"}, args...)}
	}
	export, again, imported := folder("export", "type=local,dest="+out), folder("again", "type=local,dest="+out), buildSpec{}
	if r.engine.Name == kilnName {
		export = ours("export", id, "--to", "type=local,dest="+out)
		again, imported = export, ours("import", id, "--from", "type=local,src="+out)
	}
	if err := r.untimed(ctx, folder("fill", "")); err != nil {
		return err
	}
	if err := r.timed(ctx, r.c.rows[0], export); err != nil {
		return err
	}
	if err := r.untimed(ctx, folder("change", "")); err != nil {
		return err
	}
	if err := r.timed(ctx, r.c.rows[1], again); err != nil {
		return err
	}
	if r.engine.Name == kilnName {
		if err := r.untimed(ctx, ours("rm", id)); err != nil {
			return err
		}
	} else {
		if err := os.Rename(filepath.Join(r.dir, "import", "Dockerfile"), filepath.Join(out, "Dockerfile")); err != nil {
			return err
		}
		imported = buildSpec{Build: peer.Build{Context: out}}
	}
	return r.timed(ctx, r.c.rows[2], imported)
}
