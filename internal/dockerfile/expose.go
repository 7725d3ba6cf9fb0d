package dockerfile

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
)

func (l *lowering) lowerExpose(s *stage, i *syntax.Expose) error {
	ports := slices.Clone(i.Ports)
	slices.SortStableFunc(ports, func(a, b syntax.Text) int { return strings.Compare(a.Value, b.Value) })
	var all []string
	for _, p := range ports {
		x, err := l.expander().Expand(p.Value, &s.state.env)
		if err != nil {
			return l.errorAt(p.Span, err.Error(), "", "")
		}
		for _, word := range x.Words() {
			spec, err := parsePort(word)
			if err != nil {
				return l.errorAt(p.Span, fmt.Sprintf("port %q: %v", word, err), "PORT, FIRST-LAST or either with /tcp, /udp or /sctp", "")
			}
			if spec.proto != strings.ToLower(spec.proto) {
				l.lint.remarkFix(ruleExposeCasing, &i.Head, i.Line, &fix{p.Span, strings.ToLower(p.Value)}, "protocol of %q is not in lower case", word)
			}
			if spec.published {
				l.lint.remarkFix(ruleExposeFormat, &i.Head, i.Line, &fix{p.Span, p.Value[strings.LastIndexByte(p.Value, ':')+1:]}, "%q has an address or host port, which EXPOSE cannot set", word)
			}
			list := spec.list()
			if err := l.spend(64*len(list), p.Span); err != nil { // in the config and the history
				return err
			}
			all = append(all, list...)
		}
	}
	if s.config.Config.ExposedPorts == nil {
		s.config.Config.ExposedPorts = map[string]struct{}{}
	}
	for _, p := range all {
		s.config.Config.ExposedPorts[p] = struct{}{}
	}
	s.config.commit(fmt.Sprintf("EXPOSE %v", all), false, l.epoch)
	return nil
}

// portSpec is one word of EXPOSE: [[ip:]hostport:]port[-port][/proto].
type portSpec struct {
	first, last int
	proto       string
	published   bool // it names an address or a host port
}

func (p portSpec) list() []string {
	out := make([]string, 0, p.last-p.first+1)
	for n := p.first; n <= p.last; n++ {
		out = append(out, strconv.Itoa(n)+"/"+strings.ToLower(p.proto))
	}
	return out
}

func parsePort(word string) (portSpec, error) {
	spec := portSpec{proto: "tcp"}
	port, host, ip := word, "", ""
	if i := strings.LastIndexByte(word, ':'); i >= 0 {
		spec.published = true
		port, host = word[i+1:], word[:i]
		if i := strings.LastIndexByte(host, ':'); i >= 0 {
			host, ip = host[i+1:], host[:i]
		}
	}
	if ip != "" {
		if _, err := netip.ParseAddr(strings.Trim(ip, "[]")); err != nil {
			return spec, fmt.Errorf("%q is no IP address", ip)
		}
	}
	port, proto, hasProto := strings.Cut(port, "/")
	if hasProto && proto != "" {
		switch strings.ToLower(proto) {
		case "tcp", "udp", "sctp":
			spec.proto = proto
		default:
			return spec, fmt.Errorf("protocol %q is not known", proto)
		}
	}
	var err error
	if spec.first, spec.last, err = parsePorts(port); err != nil {
		return spec, err
	}
	if host == "" {
		return spec, nil
	}
	first, last, err := parsePorts(host)
	if err != nil {
		return spec, err
	}
	if spec.last != spec.first && last-first != spec.last-spec.first {
		return spec, fmt.Errorf("ranges %s and %s differ in length", host, port)
	}
	return spec, nil
}

// parsePorts reads a port or a range of ports.
func parsePorts(v string) (first, last int, err error) {
	a, b, isRange := strings.Cut(v, "-")
	if !isRange {
		b = a
	}
	x, err1 := strconv.ParseUint(a, 10, 16)
	y, err2 := strconv.ParseUint(b, 10, 16)
	switch {
	case err1 != nil || err2 != nil:
		return 0, 0, fmt.Errorf("%q is no number from 0 to 65535", v)
	case y < x:
		return 0, 0, fmt.Errorf("range %s ends before it starts", v)
	}
	return int(x), int(y), nil
}
