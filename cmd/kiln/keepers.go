package main

import (
	"github.com/kiln-build/kiln/internal/gc"
	"github.com/kiln-build/kiln/internal/layer"
)

// keepers are several gc.Keeper as one. Their ids are of their own making,
// so that no two have the same.
type keepers []gc.Keeper

// Usage describes what all of them keep.
func (ks keepers) Usage() (all []layer.Usage, err error) {
	for _, k := range ks {
		u, err := k.Usage()
		if err != nil {
			return nil, err
		}
		all = append(all, u...)
	}
	return all, nil
}

// Remove deletes what one of them keeps.
func (ks keepers) Remove(id string) (removed bool, err error) {
	for _, k := range ks {
		if removed, err = k.Remove(id); removed || err != nil {
			return removed, err
		}
	}
	return false, nil
}
