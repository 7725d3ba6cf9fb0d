package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moby/buildkit/client"
)

// The case here has both daemons keep 10,000 records, and asks BuildKit's client
// library what there is and to remove it all. Their roots are in memory: a disk
// takes minutes for 10,000 records of BuildKit, each of which it syncs when it
// is made, when it is first measured and when it goes. That would be all that is
// seen, and is left out to Kiln's disadvantage.

const (
	recordBuilds = 11 // of nearly 1,000 records each
	leastRecords = 10_000
	usageCalls   = 5
)

func recordCases() []benchCase {
	return []benchCase{{
		name: "records-10k", rows: []string{"du-10k-first", "du-10k", "prune-10k"}, rounds: 3, inMemory: true, run: runRecords,
	}}
}

func runRecords(ctx context.Context, r *roundRun) (err error) {
	c, err := client.New(ctx, r.engine.Addr())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for i := range recordBuilds {
		if err := r.solve(ctx, c, wide(fmt.Sprint(r.nonce, "-", i))); err != nil {
			return fmt.Errorf("make records: %w", err)
		}
	}
	row := "du-10k-first"
	for range usageCalls {
		began := time.Now()
		list, err := c.DiskUsage(ctx)
		if err != nil {
			return fmt.Errorf("disk usage: %w", err)
		}
		r.results.add(row, "s", r.engine.Name, time.Since(began).Seconds())
		if len(list) < leastRecords {
			return fmt.Errorf("%s keeps %d records, %d were made", r.engine.Name, len(list), leastRecords)
		}
		row = "du-10k" // without what the first call finds out once for all
	}
	began := time.Now()
	if err := c.Prune(ctx, nil, client.PruneAll); err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	r.results.add("prune-10k", "s", r.engine.Name, time.Since(began).Seconds())
	list, err := c.DiskUsage(ctx)
	if err != nil || len(list) > 0 {
		return fmt.Errorf("%d records are left by %s (%w)", len(list), r.engine.Name, err)
	}
	return nil
}
