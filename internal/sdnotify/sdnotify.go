// Package sdnotify tells the service manager how the agent is doing: ready, reloading, stopping, alive, and one line
// of status for `systemctl status`. It is the only door to go-systemd.
//
// Every function is harmless where no manager listens (NOTIFY_SOCKET is unset: a terminal, a test, a container): it
// does nothing and returns nil. A service of Type=notify goes through
//
//	start ──► Ready ──► Reloading ──► Ready ──► Stopping ──► exit
//	            │ Status and Watchdog at any time in between
//
// The protocol is that of sd_notify(3) and sd_watchdog_enabled(3).
package sdnotify

import (
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// watchdogShare is the part of the watchdog's limit after which the agent reports: sd_watchdog_enabled(3) recommends
// every half of it.
const watchdogShare = 2

// Ready says that the service is up, or that a reload has ended. Call it once the agent takes casts.
func Ready() error { return send(daemon.SdNotifyReady) }

// Stopping says that the shutdown has begun. Call it first thing after the signal.
func Stopping() error { return send(daemon.SdNotifyStopping) }

// Reloading says that the configuration is read again; call Ready when that is done. The manager learns the monotonic
// time too, so that the same words do for Type=notify-reload.
func Reloading() error { return send(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec()) }

// Watchdog says that the agent is alive. Call it at least every WatchdogInterval, from a place that really knows.
func Watchdog() error { return send(daemon.SdNotifyWatchdog) }

// Status shows one line of free text in `systemctl status`. Line breaks would begin another assignment of the
// protocol, so they become spaces.
func Status(text string) error {
	return send("STATUS=" + strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), " "))
}

// WatchdogInterval returns how often Watchdog must be called: half of the manager's limit (WatchdogSec=). It is 0 when
// the manager watches nobody or somebody else.
func WatchdogInterval() (time.Duration, error) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0, fmt.Errorf("cannot read the service manager's watchdog limit (WATCHDOG_USEC): %w", err)
	}
	return limit / watchdogShare, nil
}

// send writes one datagram to the manager. The environment is left as it is: the agent's children are libvirt's and
// ovs's helpers, which NotifyAccess=main keeps from speaking for it.
func send(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		name, _, _ := strings.Cut(state, "=")
		return fmt.Errorf("cannot tell the service manager %s (is NOTIFY_SOCKET right?): %w", name, err)
	}
	return nil
}
