package executortest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"

	"github.com/kiln-build/kiln/internal/executor"
)

// tellingProxy answers each request with its URL, and for /dial with what came
// of reaching the address.
type tellingProxy struct{ address string }

func (p tellingProxy) Serve(l net.Listener, dial func(context.Context, string, string) (net.Conn, error)) {
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/dial" {
			fmt.Fprintln(w, r.URL)
			return
		}
		conn, err := dial(r.Context(), "tcp", p.address)
		if err == nil {
			conn.Close()
		}
		fmt.Fprintln(w, "reached:", err == nil)
	})}
	_ = server.Serve(l) // ends with the listener
	_ = server.Close()
}

// testProxy: a container with a proxy has nothing but it, in all its processes;
// the proxy itself reaches what the container's network would.
func testProxy(t *testing.T, e executor.Executor, rootless bool) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	const ask = `ip -o link | awk '{print $2}'
env | grep -i _proxy= | sed 's/127.0.0.1:[0-9]*/PROXY/' | sort
wget -q -O- http://some.host/path
wget -q -O- http://some.host/dial
unset HTTP_PROXY http_proxy
! wget -q -O- http://127.0.0.1:%s/ 2>/dev/null
ip route`
	for network, reached := range map[executor.Network]bool{executor.NetworkSandbox: rootless, executor.NetworkHost: true} {
		spec := Spec(t, fmt.Sprintf(ask, port))
		spec.Process.Env = append(spec.Process.Env, "HTTP_PROXY=http://elsewhere.invalid", "no_proxy=some.host")
		spec.Network, spec.Proxy = network, tellingProxy{l.Addr().String()}
		MustPrint(t, e, spec, "lo:\nALL_PROXY=http://PROXY\nHTTPS_PROXY=http://PROXY\nHTTP_PROXY=http://PROXY\nNO_PROXY=127.0.0.1,localhost,::1\n"+
			"all_proxy=http://PROXY\nhttp_proxy=http://PROXY\nhttps_proxy=http://PROXY\nno_proxy=127.0.0.1,localhost,::1\n"+
			"http://some.host/path\n"+fmt.Sprintln("reached:", reached))
	}
	spec := Spec(t, "ip -o link | awk '{print $2}'; env | grep -ic _proxy=")
	spec.Network, spec.Proxy = executor.NetworkNone, tellingProxy{}
	stdout, _, _ := Finish(t, e, spec)
	if stdout != "lo:\n0\n" {
		t.Errorf("without a network: %q", stdout)
	}
}

// testProxyExec: further processes of a container have the same proxy.
func testProxyExec(t *testing.T, e executor.Executor) {
	spec := Spec(t, "echo up; sleep 1000")
	spec.Network, spec.Proxy = executor.NetworkSandbox, tellingProxy{}
	c, _ := started(t, e, context.Background(), spec, nil)
	out := &Output{}
	p := SpecIn(spec.Root, "wget -q -O- http://second/").Process
	p.Env = append(p.Env, "http_proxy=http://elsewhere.invalid")
	task, err := c.Exec(context.Background(), p, executor.IO{Stdout: out, Stderr: out})
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Wait(context.Background()); err != nil || out.String() != "http://second/\n" {
		t.Errorf("the second process: %v, printed %q", err, out.String())
	}
}
