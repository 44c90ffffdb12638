package natstest_test

import (
	"syscall"
	"testing"

	"github.com/compute-agent/compute-agent/test/natstest"
)

// Both kinds of server listen where the file says, and no longer when they have ended.
func TestServers(t *testing.T) {
	for name, start := range map[string]func(t *testing.T, file, address string) (end func()){
		"inside": func(t *testing.T, file, _ string) func() {
			t.Helper()
			s := natstest.InsideReady(t, file)
			return func() { natstest.End(s) }
		},
		"outside": func(t *testing.T, file, address string) func() {
			t.Helper()
			p := natstest.Outside(t, file, address, "servers of tests are not tried")
			return func() { p.End(t, syscall.SIGINT); p.End(t, syscall.SIGKILL) } // the second is none
		},
	} {
		t.Run(name, func(t *testing.T) {
			address := natstest.FreeAddress(t)
			if natstest.Listens(t.Context(), address) {
				t.Fatal("somebody listens at a free address")
			}
			end := start(t, natstest.File(t, natstest.Config(address, t.TempDir(), "")), address)
			if !natstest.Listens(t.Context(), address) {
				t.Error("nobody listens")
			}
			end()
			if natstest.Listens(t.Context(), address) {
				t.Error("it listens after its end")
			}
		})
	}
}
