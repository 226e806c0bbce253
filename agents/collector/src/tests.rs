mod collecting;
mod faults;
mod fixture;
mod holds;
mod interleaved;
mod moment;
mod refusing;
mod withheld;
