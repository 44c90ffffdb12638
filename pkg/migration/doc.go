// Package migration moves running guests between two hosts. The source conducts:
// [Source.Run] walks a phase table, one row after the other, each written to the
// journal before its first side effect and undone in reverse when a later one fails.
// The destination answers: [Dest] prepares, takes over and owns. The package knows no
// transport and no driver; what it needs of the world stands in ports.go.
//
// # The conversation
//
// The memory stream is the hypervisors' own (peer-to-peer), so either agent may die
// meanwhile. "⇒" is a call between agents, "·" something the hypervisors do.
//
//	phase      source                                            destination
//	accept     journal
//	queue      wait for an outbound slot
//	check      how the guest stands
//	           check_can_live_migrate_destination            ⇒   CPU, disks, ports, room, slot: all reasons
//	prepare    journal
//	           pre_live_migration                            ⇒   claim ─ files ─ plug ─ ready: journal each
//	                                                             await: journal, the claim's clock runs
//	perform    journal
//	           a worker sits in the blocking call, linked
//	           to the finish Event; the monitor beats        ·   STARTED(migrated), paused
//	           · SUSPENDED(migrated)                         ·   RESUMED(migrated | postcopy)
//	                                                             activate: the ports speak
//	                                                             own: generation + 1, published. THE COMMIT POINT
//	           · job-completed; finish Event
//	           the facts of both hosts say how it ended
//	switch     journal
//	           post_live_migration_at_destination            ⇒   owned (a guest that was paused is taken here:
//	           again and again until it is owned                 only now is the source's end known)
//	clean      journal
//	           unplug, undefine, drop the record
//	end        completed
//
// Before the commit point anything that goes wrong is undone in reverse:
//
//	perform    abort the job, until none is left
//	prepare    rollback_live_migration_at_destination        ⇒   unplug ─ files ─ unclaim; remembered, so that
//	           again until it is answered                        a late pre_live_migration is refused
//	           conflict, the guest runs there: the facts are judged again; silence after
//	           the switch-over: unknown
//	check      let the guest go on if it stands still, once
//	           the destination has answered that it never ran there
//	queue      give the slot back
//	end        failed | cancelled
//
// # Who owns the guest
//
// The source, until the destination's hypervisor resumes it; from then on the
// destination, whoever knows of it already. [Committed] reads that from the
// destination's domain, [Outcome] from the facts of both. What the facts do not prove
// is unknown: status error, nothing is destroyed, and a later Run looks again.
//
// # After a restart
//
// Both sides go on by their journaled phase:
//
//	source  accept, queue, check   from the queue on
//	        prepare                undone
//	        perform                the job still runs: the monitor attaches again;
//	                               it is over: the facts decide
//	        switch, clean          finished
//	dest    claim … ready          undone
//	        await                  a guest that came meanwhile is owned; else it waits on
//	        after the commit       finished
package migration
