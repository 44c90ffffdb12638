package agent

import (
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/internal/jsonkit/jsontest"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
)

func TestTaskWritesItself(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	jsontest.Same(t, Task{
		ID: "an id", Order: 1 << 60, Sequence: 7, Style: api.Cast, Method: api.PauseInstance, Instance: "i", Migration: "m",
		Args: []byte(`{"instance":"i"}`), Trace: `quoted "é"`, State: api.TaskFailed, DomainID: -1, Result: []byte(`[1]`),
		Error: fault.New(fault.NotFound, "op", "subject", "text").WithDetail("n", 1), AcceptedAt: at, EndedAt: at.Add(time.Second),
	})
}
