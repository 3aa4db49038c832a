"""Q-learning: batches from a replay buffer, targets from a second network; no loader at all."""

import random
from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Corridor:
    """The goal is at the right end."""

    length = 8

    def reset(self):
        self.at, self.time = 0, 0
        return self.seen()

    def seen(self):
        seen = np.zeros(self.length, dtype=np.float32)
        seen[self.at] = 1
        return seen

    def step(self, action):
        self.time += 1
        self.at = min(max(self.at + (1 if action else -1), 0), self.length - 1)
        won = self.at == self.length - 1
        return self.seen(), float(won), won or self.time > 40


random.seed(0)
torch.manual_seed(0)
env, buffer = Corridor(), deque(maxlen=2000)
online, target = (nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)) for _ in range(2))
target.load_state_dict(online.state_dict())
optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)

for episode in range(60):
    state, done = env.reset(), False
    while not done:
        if random.random() < 0.3:
            action = random.randrange(2)
        else:
            with torch.no_grad():
                action = int(online(torch.from_numpy(state)[None]).argmax())
        after, reward, done = env.step(action)
        buffer.append((state, action, reward, after, done))
        state = after
        if len(buffer) < 64:
            continue
        columns = zip(*random.sample(buffer, 32), strict=True)
        states, actions, rewards, nexts, dones = (torch.tensor(np.array(c)) for c in columns)
        values = online(states).gather(1, actions[:, None]).squeeze(1)
        with torch.no_grad():
            best = target(nexts).max(1).values
            wanted = rewards.float() + 0.95 * (~dones) * best
        loss = F.smooth_l1_loss(values, wanted)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(online.parameters(), 10.0)
        optimizer.step()
    if episode % 10 == 0:
        target.load_state_dict(online.state_dict())
