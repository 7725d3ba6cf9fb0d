package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kiln-build/kiln/conformance/corpus"
)

// These rows are measured in this process, by BuildKit's client library, so
// that no start of a client is part of them.

func corpusCases() []benchCase {
	c := &corpusBench{}
	return []benchCase{
		{name: "corpus-noop", rows: []string{"corpus-noop"}, rounds: 3, prepare: c.prepare, run: c.noop},
		askCase("lower-1000-lines", "frontend.convertllb", 31, thousandLines()),
		askCase("lower-200-stages", "frontend.convertllb", 31, manyStages()),
		askCase("check", "frontend.lint", 31, checked),
	}
}

// corpusBench builds the corpus of the conformance tests. It is made once, for
// all rounds.
type corpusBench struct{ *corpus.Corpus }

func (c *corpusBench) prepare(r *roundRun) (err error) {
	if c.Corpus == nil {
		c.Corpus, err = corpus.Open(context.Background(), filepath.Join("..", "conformance"), filepath.Join(r.tmp, "corpus"))
	}
	return err
}

// noop builds each case that can be cached, and then once more: the sum of the
// latter is the row.
func (c *corpusBench) noop(ctx context.Context, r *roundRun) error {
	b, err := c.Connect(ctx, r.engine.Addr())
	if err != nil {
		return err
	}
	defer b.Close()
	var sum time.Duration
	for _, k := range c.Cases {
		if !k.Steady() {
			continue
		}
		for _, counts := range []bool{false, true} {
			began := time.Now()
			out, err := b.Build(ctx, k, false)
			if err == nil {
				err = out.Err
			}
			if err != nil {
				return fmt.Errorf("build %s on %s: %w", k.Name, r.engine.Name, err)
			}
			if counts {
				sum += time.Since(began)
			}
		}
	}
	r.results.add("corpus-noop", "s", r.engine.Name, sum.Seconds())
	return nil
}

// askCase times a request to the frontend about one Dockerfile, of which the
// base image is resolved before.
func askCase(name, request string, rounds int, dockerfile string) benchCase {
	return benchCase{name: name, rows: []string{name}, rounds: rounds, run: func(ctx context.Context, r *roundRun) error {
		archive := filepath.Join(r.dir, "archives", "ask.txtar")
		if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(archive, []byte("-- file.Dockerfile --\n"+dockerfile), 0o600); err != nil {
			return err
		}
		cases, err := corpus.Read(filepath.Dir(archive), filepath.Join(r.dir, "cases-"+r.engine.Name), nil)
		if err != nil {
			return err
		}
		bases, err := corpus.MakeBases(filepath.Join(r.dir, "bases-"+r.engine.Name))
		if err != nil {
			return err
		}
		b, err := corpus.NewBuilder(ctx, r.engine.Addr(), bases, "")
		if err != nil {
			return err
		}
		defer b.Close()
		for _, counts := range []bool{false, true} {
			began := time.Now()
			if _, err := b.Request(ctx, cases[0], request); err != nil {
				return fmt.Errorf("ask %s: %w", r.engine.Name, err)
			}
			if counts {
				r.results.add(name, "s", r.engine.Name, time.Since(began).Seconds())
			}
		}
		return nil
	}}
}

// thousandLines has each kind of instruction a hundred times and more.
func thousandLines() string {
	var b strings.Builder
	b.WriteString("FROM base\nARG VERSION=1\n")
	for i := range 111 {
		fmt.Fprintf(&b, `ENV KEY_%[1]d=value-$VERSION-${UNSET:-%[1]d}
ARG ARG_%[1]d=$KEY_%[1]d
LABEL label.%[1]d="a label with $KEY_%[1]d"
WORKDIR /w/%[1]d
COPY --chown=1:%[1]d file-%[1]d.* ./to/
ADD --link other-%[1]d /added/
RUN --mount=type=cache,target=/cache/%[1]d echo $ARG_%[1]d \
    > out && cat out
EXPOSE %[2]d
`, i, 2000+i)
	}
	return b.String()
}

// manyStages is 200 stages, each of which takes from the one before it.
func manyStages() string {
	var b strings.Builder
	b.WriteString("FROM base AS stage-0\nCOPY file /\n")
	for i := range 199 {
		fmt.Fprintf(&b, "FROM base AS stage-%d\nCOPY --from=stage-%d /file /made/\nRUN cat /made/file > /file\n", i+1, i)
	}
	return b.String()
}

// checked is a file as people have it, with things to remark on.
const checked = `ARG BASE=base
FROM --platform=$TARGETPLATFORM ${BASE} as build
WORKDIR src
ENV VERSION 1.0
ENV API_TOKEN=secret
COPY package.json package-lock.json ./
RUN --mount=type=cache,target=/root/.npm npm ci
COPY . .
RUN npm run build \

    && npm prune

FROM base AS Final
MAINTAINER Some Body
COPY --from=build /src/dist /app
EXPOSE 80/TCP
ENV PATH=$PATH:$APP_HOME
CMD npm start
CMD node /app/index.js
`
