// Package cronjob makes Jobs at the times that CronJobs ask for.
//
// It owns the jobs made from a cron job (their making, and their deletion beyond the history limits), and the
// status of cron jobs. It never touches the pods of a job, nor jobs that it did not make.
//
// The name of a job is made of the cron job's and the minute for which it was due, so that no
// run is started twice.
package cronjob
