mod collecting;
mod faults;
mod fixture;
mod holds;
mod interleaved;
mod refusing;
