package client

import (
	"net/url"
	"strings"
	"testing"
)

func TestHelperCommand(t *testing.T) {
	for address, want := range map[string]string{
		"docker-container://name":             "docker exec -i name buildctl dial-stdio",
		"docker-container://name?context=ctx": "docker --context=ctx exec -i name buildctl dial-stdio",
		"podman-container://name":             "podman exec -i name buildctl dial-stdio",
		"nerdctl-container://name":            "nerdctl exec -i name buildctl dial-stdio",
		"nerdctl-container://n?namespace=k8s": "nerdctl exec --namespace k8s -i n buildctl dial-stdio",
		"kube-pod://pod?container=c&namespace=ns&context=user@cluster": "kubectl --context=user@cluster --namespace=ns " +
			"exec --container=c -i pod -- buildctl dial-stdio",
		"ssh://me@host:10022/s/o/c.sock": "ssh -l me -p 10022 -- host buildctl --addr unix:///s/o/c.sock dial-stdio",
		"ssh://host":                     "ssh -- host buildctl dial-stdio",
		"ssh://host/it's":                `ssh -- host buildctl --addr unix://'/it'\''s' dial-stdio`,
		"docker-container://":            "",
		"docker-container://-x":          "",
		"podman-container://":            "",
		"nerdctl-container://":           "",
		"kube-pod://":                    "",
		"kube-pod://unsupported_name":    "",
		"kube-pod://-p":                  "",
		"kube-pod://p?namespace=a_b":     "",
		"kube-pod://p?container=-c":      "",
		"ssh://me:pass@host":             "",
		"ssh://":                         "",
		"ssh://host?x":                   "",
		"ssh://host#x":                   "",
		"npipe:////./pipe/x":             "",
	} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		argv, err := helperCommand(u)
		if got := strings.Join(argv, " "); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v, want %q", address, got, err, want)
		}
	}
}
