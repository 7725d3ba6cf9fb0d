package gateway

import "testing"

func TestSignalNumber(t *testing.T) {
	for name, want := range map[string]int{
		"TERM": 15, "SIGTERM": 15, "CHLD": 17, "CLD": 17, "ABRT": 6, "IOT": 6, "IO": 29, "POLL": 29, "SYS": 31, "UNUSED": 31,
		"RTMIN": 34, "RTMIN+6": 40, "RTMAX-1": 63, "RTMAX": 64,
		"": 0, "HUH": 0, "RTMIN-1": 0, "RTMAX+1": 0, "RTMIN+31": 0, "RTMINx": 0, "RTMAX-99999999999999999999": 0,
	} {
		if n, ok := signalNumber(name); ok != (want != 0) || ok && n != want {
			t.Errorf("%q: got %d, %t, expected %d", name, n, ok, want)
		}
	}
}
