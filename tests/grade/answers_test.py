"""Where the final answer stands."""

import time

import pytest

from opsd_jax.grade import answers


@pytest.mark.parametrize(
  ('completion', 'opsd', 'strict'),
  [
    (r'so \boxed{12}.', '12', '12'),
    (r'\boxed{1} or \boxed{2}', '2', '2'),
    (r'\boxed{ \frac{1}{2} }', r'\frac{1}{2}', r'\frac{1}{2}'),
    (r'\boxed{\{1, 2\}}', r'\{1, 2\}', r'\{1, 2\}'),
    (r'\boxed{\left\{ 1 \right.}', None, r'\left\{ 1 \right.'),
    (r'\boxed{\boxed{5}}', '5', '5'),
    (r'\boxed 5', None, '5'),
    (r'\boxed 5.', None, '5'),
    (r'$\boxed 42$', None, '42'),
    (r'$\boxed\frac12$', None, r'\frac12'),
    (r'\boxed {7}', None, '7'),
    (r'\fbox{7}', None, '7'),
    (r'\boxed{7', None, None),
    (r'\boxed{6} and then \boxed{7', None, '6'),
    (r'\boxed{6}, which I put into \boxed as asked.', None, '6'),
    (r'\boxed{6}, which I put into \boxed{}.', '', '6'),
    (r'\boxed{6} \boxedtext{7}', None, '6'),
    (r'\boxed{}', '', None),
    (r'\boxed', None, None),
    ('', None, None),
    ('the answer is 5', None, None),
    ('#### 5', None, '5'),
    ('#### 1,080\n', None, '1,080'),
    ('#### 4\n#### 5', None, '5'),
    ('#### 5\nAnswer: 6', None, '5'),
    ('#### 5 apples', None, '5 apples'),
    ('#### Step 1\nwe add', None, None),
    ('#### 2. Add\nFinal answer: 5', None, '5'),
    ('#### **Conclusion**\nThe final answer is 5.', None, '5'),
    ('#### Answer: 5', None, '5'),
    ('The final answer is $\\frac{1}{2}$.', None, r'\frac{1}{2}'),
    ('Final Answer: **7**.', None, '7'),
    ('**Answer:** 7', None, '7'),
    ('**Answer: $7$.**', None, '7'),
    ('Answer: \\(x^2\\)', None, 'x^2'),
    ('Answer: 6\nFinal answer is 5', None, '5'),
    ('Answer:\nAnswer: 3\nAnswer: ', None, '3'),
    ('Answer: 0.5', None, '0.5'),
    ('Answer: 3...', None, '3...'),
    (r'Answer: 3, \boxed{4}', '4', '4'),
    (r'<think>\boxed{3}</think> \boxed{4}', '4', '4'),
    (r'\boxed{3}</think> I am done.', '3', None),
    (r'<think>\boxed{3}', '3', None),
    (r'\boxed{4} <think>\boxed{3}', '3', '4'),
    (r'<think>a</think>\boxed{1}<think>\boxed{2}</think>\boxed{3}', '3', '3'),
  ],
)
def test_what_is_read(completion, opsd, strict):
  assert answers.opsd(completion) == opsd
  assert answers.strict(completion) == strict


@pytest.mark.parametrize(
  ('completion', 'letter'),
  [
    (r'\boxed{C}', 'C'),
    (r'\boxed{c}', 'C'),
    (r'\boxed{\text{(C)}}', 'C'),
    (r'\boxed{\textbf{(C)}\ 42}', 'C'),
    (r'\boxed{(C)}', 'C'),
    (r'\boxed{C. 42}', 'C'),
    (r'\boxed{C) 42}', 'C'),
    (r'Answer: A, so \boxed{B}', 'B'),
    (r'\boxed{42}', None),
    (r'\boxed{42} Answer: D', 'D'),
    (r'\boxed{Cat}', None),
    ('Answer: C', 'C'),
    ('**Answer:** C', 'C'),
    ('Answer: **(C)** because', 'C'),
    ('The answer is (B).', 'B'),
    ('The correct answer is $\\text{D}$', 'D'),
    ('Answer: A\nAnswer: B', 'B'),
    ('The answer is Alice.', None),
    ('so it must be (C)', 'C'),
    ('so it must be (C).', 'C'),
    ('see (C) above', None),
    ('so:\n\nD', 'D'),
    ('vitamin D', None),
    ('<think>Answer: A</think>Answer: B', 'B'),
    ('<think>Answer: A', None),
    ('', None),
  ],
)
def test_letters_of_a_choice(completion, letter):
  assert answers.choice(completion) == letter


@pytest.mark.parametrize(
  'repeated', [r'\boxed{', r'\boxed ', '{', r'\{', '####', 'Answer:', 'final answer ', '(C', ' ', '\n', '*']
)
def test_a_completion_that_repeats_itself_is_read_in_one_pass(repeated):
  completion, began = repeated * (1_000_000 // len(repeated)), time.process_time()
  for read in (answers.opsd, answers.strict, answers.choice):
    read(completion)
    read(f'Answer is{completion}')
  assert time.process_time() - began < 10
