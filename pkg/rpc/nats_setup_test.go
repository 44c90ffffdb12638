package rpc_test

import (
	"sync"
	"testing"

	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// Agents that start at the same moment on a server that has nothing yet make its streams
// side by side: each of them is served.
func TestSetupSideBySide(t *testing.T) {
	for name, s := range map[string]func(*testing.T) *natsServer{"inside": embeddedServer, "outside": externalServer} {
		t.Run(name, func(t *testing.T) {
			server := s(t)
			dial(t, rpc.Config{URLs: []string{server.url}}) // it answers now
			for round := range 8 {
				cfg := testConfig(server.url)
				cfg.Prefix = string(rune('a' + round))
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(func() {
						c, err := rpc.Dial(t.Context(), cfg)
						if err != nil {
							t.Errorf("Dial = %v", err)
							return
						}
						_ = c.Close()
					})
				}
				wg.Wait()
			}
		})
	}
}
