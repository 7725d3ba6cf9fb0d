package namespace

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
)

// notifySocket is the variable by which a service manager says where it wants
// to hear of states, sd_notify(3).
const notifySocket = "NOTIFY_SOCKET"

// passNotices passes what the inner process tells the service manager on, until
// it ends.
func passNotices(report *os.File) {
	defer report.Close()
	path := os.Getenv(notifySocket)
	lines := bufio.NewScanner(report)
	for lines.Scan() {
		if path == "" {
			continue
		}
		if err := sendNotice(path, lines.Text()); err != nil {
			fmt.Fprintln(os.Stderr, "tell the service manager:", err)
		}
	}
}

// sendNotice sends one state. A path that begins with @ is of an abstract socket.
func sendNotice(path, state string) error {
	if strings.HasPrefix(path, "@") {
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}
