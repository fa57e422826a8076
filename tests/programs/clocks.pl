# Sleeps until a time of the monotonic clock, which never jumps.
use strict;
use warnings;
use POSIX ();
use Time::HiRes qw(sleep alarm clock_gettime clock_nanosleep CLOCK_MONOTONIC TIMER_ABSTIME);

my $steps = shift // 40;

sub limit {
    my $path = $ENV{GUEST_LIMIT} // return 9e15;
    open(my $file, '<', $path) or return 9e15;
    my $text = <$file>;
    return int($text);
}

sub say_line { POSIX::write(1, "$_[0]\n", length($_[0]) + 1) }

my $alarms = 0;
$SIG{ALRM} = sub { $alarms++; alarm 0.05 };
alarm 0.05;
my $last = clock_gettime(CLOCK_MONOTONIC);
for my $step (1 .. $steps) {
    sleep 0.005 while limit() < $step;
    my $until = clock_gettime(CLOCK_MONOTONIC) + 0.005;
    my $left = 1;
    # A signal ends it early.
    while (clock_gettime(CLOCK_MONOTONIC) < $until) {
        clock_nanosleep(CLOCK_MONOTONIC, $until * 1e9, TIMER_ABSTIME);
    }
    my $now = clock_gettime(CLOCK_MONOTONIC);
    die "the clock went from $last to $now" if $now < $last || $now - $last > 60;
    $last = $now;
    say_line("step $step");
}
alarm 0; # Perl takes the handler away before it ends.
die "no alarm came" unless $alarms;
say_line("ok clocks");
