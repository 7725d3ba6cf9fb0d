package client

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
)

// helperCommand is the command line that connects to the daemon of an address
// whose scheme stands for a program: in a container, a pod or on another machine,
// it runs "buildctl dial-stdio".
func helperCommand(u *url.URL) ([]string, error) {
	switch u.Scheme {
	case "docker-container":
		return containerCommand("docker", u, "context", "--context=")
	case "nerdctl-container":
		argv, err := containerCommand("nerdctl", u, "", "")
		if ns := u.Query().Get("namespace"); ns != "" && err == nil {
			argv = append([]string{"nerdctl", "exec", "--namespace", ns}, argv[2:]...)
		}
		return argv, err
	case "podman-container":
		return containerCommand("podman", u, "", "")
	case "kube-pod":
		return podCommand(u)
	case "ssh":
		return sshCommand(u)
	}
	return nil, errors.New("want unix://PATH, tcp://HOST:PORT, ssh://HOST, docker-container://NAME, " +
		"podman-container://NAME, nerdctl-container://NAME or kube-pod://POD")
}

// containerCommand runs in a container of an engine. A parameter of the URL may
// be handed on as a global flag.
func containerCommand(engine string, u *url.URL, param, flag string) ([]string, error) {
	name := u.Hostname()
	if name == "" {
		return nil, errors.New("url lacks container name")
	}
	if name[0] == '-' {
		return nil, fmt.Errorf("unsupported container name: %q", name)
	}
	argv := []string{engine}
	if v := u.Query().Get(param); param != "" && v != "" {
		argv = append(argv, flag+v)
	}
	return append(argv, "exec", "-i", name, "buildctl", "dial-stdio"), nil
}

func podCommand(u *url.URL) ([]string, error) {
	// No value may be taken for a flag of kubectl.
	name := regexp.MustCompile(`^[a-z0-9.][-a-z0-9.]*$`)
	q := u.Query()
	pod, namespace, container := u.Hostname(), q.Get("namespace"), q.Get("container")
	if pod == "" {
		return nil, errors.New("url lacks pod name")
	}
	for what, v := range map[string]string{"pod": pod, "namespace": namespace, "container": container} {
		if v != "" && !name.MatchString(v) {
			return nil, fmt.Errorf("unsupported %s name: %q", what, v)
		}
	}
	return []string{
		"kubectl", "--context=" + q.Get("context"), "--namespace=" + namespace,
		"exec", "--container=" + container, "-i", pod, "--", "buildctl", "dial-stdio",
	}, nil
}

func sshCommand(u *url.URL) ([]string, error) {
	switch _, password := u.User.Password(); {
	case password:
		return nil, errors.New("plain-text password is not supported")
	case u.Hostname() == "":
		return nil, errors.New("no host specified")
	case u.RawQuery != "":
		return nil, fmt.Errorf("extra query after the host: %q", u.RawQuery)
	case u.Fragment != "":
		return nil, fmt.Errorf("extra fragment after the host: %q", u.Fragment)
	}
	argv := []string{"ssh"}
	if name := u.User.Username(); name != "" {
		argv = append(argv, "-l", name)
	}
	if u.Port() != "" {
		argv = append(argv, "-p", u.Port())
	}
	argv = append(argv, "--", u.Hostname(), "buildctl")
	if u.Path != "" {
		argv = append(argv, "--addr", "unix://"+shellQuote(u.Path))
	}
	return append(argv, "dial-stdio"), nil
}

// shellQuote is a word for the shell of the other machine, which ssh's arguments
// go through.
func shellQuote(s string) string {
	if regexp.MustCompile(`^[-A-Za-z0-9_./:@%+,]*$`).MatchString(s) {
		return s
	}
	quoted := "'"
	for _, r := range s {
		if r == '\'' {
			quoted += `'\''`
		} else {
			quoted += string(r)
		}
	}
	return quoted + "'"
}
