// Package fake is a working hypervisor in memory: the driver behind
// "--driver fake" and behind every test that needs machines without QEMU. It
// passes the contract suite of virt/virttest, so what runs on it runs on libvirt.
//
// A [World] holds [Host]s that reach one another. A host outlives the [Driver]
// handles opened on it, as a libvirtd and its guests outlive the agent:
//
//	w := fake.NewWorld(ctx)
//	h, err := fake.NewHost(w, fake.Config{Name: "a"})
//	d := h.Open() // a virttest.Driver
//
// Guests boot, tick on their console, answer the power button and write to
// their memory ([Guest]); a live migration copies that memory by a model whose
// statistics move as QEMU's do (model.go). All of it is computed from elapsed
// time when somebody asks; a running migration costs one timer and no
// goroutine. Only package time is used, so a testing/synctest bubble gives
// virtual time.
//
// The life of a migration; the right column is what the hosts' events say:
//
//	setup ──▶ pre-copy ──▶ switching ──▶ finishing ──▶ over
//	  │  ▲       │ │           │                        ▲
//	  │  └ iterations          └ reply lost: source stays paused ──▶ over
//	  │          │ └──▶ post-copy ──▶ finishing          │
//	  └──────────┴── abort, failure: the guest runs on the source ┘
//
//	setup       destination STARTED(migrated), paused
//	pre-copy    source migration-iteration n
//	switching   source SUSPENDED(migrated); destination DEFINED, RESUMED(migrated)
//	            (or SUSPENDED(user) for a guest that was paused)
//	post-copy   source SUSPENDED(postcopy); destination RESUMED(postcopy), at its end RESUMED(migrated)
//	finishing   Config.Finish later: source STOPPED(migrated), UNDEFINED, job-completed
//
// Trouble is made with [Host.Faults] (fail, hang, slow, lose a reply),
// [Host.Disconnect], [Host.Crash] and their kin; [Host.Counts] and
// [World.Audit] tell what really happened.
//
// What it leaves out: disks have no contents and are not copied, migrations do
// not share a link's bandwidth, a compression changes nothing (its name and what it
// can't be combined with are checked), save and restore take no time.
package fake
