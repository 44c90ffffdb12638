// Package reboot restarts guests and stops them: softly, by asking the guest,
// or hard, by taking its power and building it anew from its record.
//
// Power is never assumed: each step looks at the hypervisor, events only make
// it look sooner, and polling alone suffices. A task that is resumed after a
// restart of the agent brings the domain id that its guest had when the task
// began; another id that runs means that the reboot has happened already.
package reboot
