package build

import (
	"slices"
	"strconv"
	"strings"
)

// optSecretKey begins the options, as secret-cache-key:ID=true, that make the
// values of secrets part of the keys of steps that use them.
const optSecretKey = "secret-cache-key:"

// keyedSecrets are the ids of secrets whose values count.
func keyedSecrets(opts map[string]string) (ids []string) {
	for k, v := range opts {
		id, ok := strings.CutPrefix(k, optSecretKey)
		if yes, err := strconv.ParseBool(v); ok && err == nil && yes {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}
