package rpc_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/compute-agent/compute-agent/pkg/rpc"
	"github.com/compute-agent/compute-agent/pkg/rpc/rpctest"
)

func memoryRig(t *testing.T) *rpctest.Rig {
	t.Helper()
	const ackWait = 200 * time.Millisecond
	bus := rpc.NewBus(rpc.WithAckWait(ackWait))
	return &rpctest.Rig{
		AckWait: ackWait, Prefix: rpc.DefaultPrefix,
		Connect: func(t *testing.T, name string) rpc.Transport {
			t.Helper()
			c := bus.Connect(name)
			t.Cleanup(func() {
				if err := c.Close(); err != nil {
					t.Errorf("Close = %v", err)
				}
			})
			return c
		},
		Inject: func(t *testing.T, subject string, header map[string][]string, body []byte) {
			t.Helper()
			if err := bus.Inject(subject, header, body); err != nil {
				t.Fatal(err)
			}
		},
		Restart: func(_ *testing.T, while func()) { bus.Restart(while) },
	}
}

func TestMemory(t *testing.T) { rpctest.Suite(t, memoryRig) }

func TestMemoryUnderVirtualTime(t *testing.T) { rpctest.SuiteIn(t, synctest.Test, memoryRig) }
