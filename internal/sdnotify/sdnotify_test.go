package sdnotify_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/internal/sdnotify"
)

// manager listens as systemd does and points NOTIFY_SOCKET at itself.
func manager(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return conn
}

func receive(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatalf("the manager got nothing: %v", err)
	}
	return string(buf[:n])
}

func TestMessages(t *testing.T) {
	tests := []struct {
		name string
		send func() error
		want string // a regular expression for the whole datagram
	}{
		{"ready", sdnotify.Ready, `READY=1`},
		{"stopping", sdnotify.Stopping, `STOPPING=1`},
		{"reloading", sdnotify.Reloading, `RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*\n`},
		{"watchdog", sdnotify.Watchdog, `WATCHDOG=1`},
		{"status", func() error { return sdnotify.Status("3 guests") }, `STATUS=3 guests`},
		{"status on one line", func() error { return sdnotify.Status("away\r\nREADY=1\n") }, `STATUS=away READY=1`},
	}
	sockets := map[string]string{
		"path":     filepath.Join(t.TempDir(), "notify"),
		"abstract": fmt.Sprintf("@compute-agent-sdnotify-test-%d", os.Getpid()),
	}
	for kind, name := range sockets {
		t.Run(kind, func(t *testing.T) {
			conn := manager(t, name)
			for _, tt := range tests {
				if err := tt.send(); err != nil {
					t.Errorf("%s: %v", tt.name, err)
					continue
				}
				if got := receive(t, conn); !regexp.MustCompile(`^` + tt.want + `$`).MatchString(got) {
					t.Errorf("%s: the manager got %q, want %q", tt.name, got, tt.want)
				}
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := sdnotify.Ready(); err != nil {
		t.Errorf("Ready() without a manager = %v, want nil", err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	if err := sdnotify.Ready(); err == nil {
		t.Error("Ready() on a socket that is gone = nil, want an error")
	}
}

func TestWatchdogInterval(t *testing.T) {
	me := strconv.Itoa(os.Getpid())
	tests := []struct {
		name, usec, pid string
		want            time.Duration
		fails           bool
	}{
		{"not watched", "", "", 0, false},
		{"watched", "30000000", me, 15 * time.Second, false},
		{"no pid given", "30000000", "", 15 * time.Second, false},
		{"somebody else", "30000000", "1", 0, false},
		{"nonsense", "soon", me, 0, true},
		{"negative", "-1", me, 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("WATCHDOG_USEC", tt.usec)
			t.Setenv("WATCHDOG_PID", tt.pid)
			got, err := sdnotify.WatchdogInterval()
			if got != tt.want || (err != nil) != tt.fails {
				t.Errorf("WatchdogInterval() = %v, %v; want %v, an error: %t", got, err, tt.want, tt.fails)
			}
		})
	}
}
