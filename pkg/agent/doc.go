// Package agent is the compute node's manager: it admits requests, remembers them,
// gives each instance its turn, carries them out and reports.
//
//	        call ──▶ answer ─────── read ───────────────────────────────▶ reply
//	                   │
//	                   ▼ changes something
//	cast ──▶ read ──▶ admit ──▶ journal ──▶ ack ──▶ lane ──▶ begin ─ verb ─ end ──▶ journal
//	                   │ (the matrix)                 one thread an instance          │
//	                   ├── refuse ──▶ journal, event                                  ▼
//	                   └── steer ───▶ journal, carried out at once          outbox ──▶ events
//	                                                                        views  ──▶ buckets
//
// Who owns what. The journal is the truth of what was accepted and what belongs
// to this host; the ledger is its only writer. The hypervisor is the truth of what
// runs; power states are derived from it. The views on the bus are copies, written
// by one green thread and made anew after each reconnect. A migration's record
// belongs to pkg/migration; this package stores it and moves the instance's record
// in the same transaction (owner.go).
//
// Life: New wires, Start opens the doors (journal read, casts taken) and returns,
// Stop shuts them within seconds. Tasks that a stop cuts short are running in the
// journal and are taken up at the next start; every verb can be repeated.
package agent
