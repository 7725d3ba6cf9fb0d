package build

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/frontend"
)

// verifyPlatforms warns if the result is not of the platforms that were asked
// for: frontends, and clients that build by themselves, may have their own mind.
func (br *Bridge) verifyPlatforms(ctx context.Context, res *frontend.Result) {
	made := slices.ContainsFunc(res.Platforms, func(p frontend.PlatformResult) bool {
		return p.ID != "" || p.Graph != nil && p.Graph.Root.Vertex != nil
	})
	if br.req.Opts["requestid"] != "" || !made {
		return // an answer, not an image
	}
	var list []string
	for _, p := range res.Platforms {
		list = append(list, platforms.FormatAll(platforms.Normalize(p.Platform)))
	}
	if text := comparePlatforms(br.req.Opts["platform"], platforms.FormatAll(br.builder.Worker.Platforms[0]), list, res.Platforms[0].ID != ""); text != "" {
		br.Warn(ctx, digest.FromString("verify platforms"), frontend.Warning{Level: 1, Short: text})
	}
}

// comparePlatforms tells how the platforms asked for, in a list with commas,
// differ from those made; "" for not at all.
func comparePlatforms(list, native string, made []string, several bool) string {
	if list == "" {
		list = native
	}
	var asked []string
	for name := range strings.SplitSeq(list, ",") {
		p, err := platforms.Parse(strings.TrimSpace(name))
		if err != nil {
			return fmt.Sprintf("Invalid platform result requested %q: %v", name, err)
		}
		text := platforms.FormatAll(platforms.Normalize(p))
		if slices.Contains(asked, text) {
			return fmt.Sprintf("Duplicate platform result requested %q", name)
		}
		asked = append(asked, text)
	}
	switch {
	case !several && len(asked) > 1:
		return "Multiple platforms requested but result is not multi-platform"
	case len(asked) == 1 && len(made) == 1:
		if !answers(asked[0], made[0]) {
			return fmt.Sprintf("Requested platform %q does not match result platform %q", asked[0], made[0])
		}
		return ""
	}
	match := len(asked) == len(made)
	for _, m := range made {
		match = match && slices.ContainsFunc(asked, func(a string) bool { return answers(a, m) })
	}
	if match {
		return ""
	}
	slices.Sort(asked)
	made = slices.Sorted(slices.Values(made))
	return fmt.Sprintf("Requested platforms %s do not match result platforms %s", strings.Join(asked, ","), strings.Join(made, ","))
}

// answers tells whether a platform is the one asked for. One that is asked for
// without a version of its system may have any.
func answers(asked, made string) bool {
	if asked == made {
		return true
	}
	a, err := platforms.Parse(asked)
	if err != nil {
		return false
	}
	m, err := platforms.Parse(made)
	return err == nil && platforms.OnlyStrict(a).Match(m)
}
